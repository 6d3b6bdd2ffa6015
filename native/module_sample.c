/* Python's side of sample.c: sample, draft and verify of memdec_edge._native, described in memdec_edge/_native.pyi. */
#include "module.h"

#include <math.h>
#include <string.h>

#include "sample.h"

static int get_unsigned(PyObject *object, const char *what, unsigned long long most, uint64_t *value) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(object);
    const int failed = number == (unsigned long long)-1 && PyErr_Occurred() != NULL;
    if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError)) return -1;
    *value = number;
    if (!failed && number <= most) return 0;
    PyErr_Format(PyExc_ValueError, "%s is not from 0 to %llu", what, most);
    return -1;
}

/* What sample, draft and verify have in common; `suppressed` and `scratch` are held until drop(). */
typedef struct {
    md_choice choice;
    uint64_t position;
    Py_buffer suppressed, scratch;
} request;

static int get_request(PyObject *chain, PyObject *seed, PyObject *position, PyObject *suppressed, PyObject *scratch,
                       size_t n_vocab, request *r) {
    Py_ssize_t top_k;
    uint64_t number;
    md_choice *choice = &r->choice;
    if (!PyTuple_Check(chain)) {
        PyErr_SetString(PyExc_TypeError, "chain must be a tuple (top_k, top_p, min_p, temperature)");
        return -1;
    }
    if (!PyArg_ParseTuple(chain, "nddd:chain", &top_k, &choice->top_p, &choice->min_p, &choice->temperature)) return -1;
    if (isnan(choice->top_p) || isnan(choice->min_p) || !(choice->temperature >= 0.0)) {
        PyErr_SetString(PyExc_ValueError, "the chain holds NaN or a temperature below 0");
        return -1;
    }
    choice->top_k = top_k > 0 ? (size_t)top_k : 0;
    if (get_unsigned(seed, "seed", UINT32_MAX, &number) < 0) return -1;
    choice->seed = (uint32_t)number;
    if (get_unsigned(position, "position", UINT64_MAX, &r->position) < 0) return -1;
    if (md_get_numbers(suppressed, "suppressed", "int32", 0, &r->suppressed) < 0) return -1;
    choice->suppressed = r->suppressed.buf;
    choice->n_suppressed = (size_t)r->suppressed.len / sizeof(int32_t);
    if (md_get_floats(scratch, "scratch", 1, PyBUF_WRITABLE, &r->scratch) == 0) {
        if ((size_t)r->scratch.len >= MD_SCRATCH(n_vocab) * sizeof(float)) return 0;
        PyErr_Format(PyExc_ValueError, "scratch must hold %zd floats for each token", (Py_ssize_t)MD_SCRATCH(1));
        PyBuffer_Release(&r->scratch);
    }
    PyBuffer_Release(&r->suppressed);
    return -1;
}

static void drop(request *r) {
    PyBuffer_Release(&r->scratch);
    PyBuffer_Release(&r->suppressed);
}

static PyObject *native_sample(PyObject *module, PyObject *args) {
    PyObject *row, *chain, *seed, *position, *suppressed, *scratch;
    Py_buffer view;
    request r;
    int32_t token = -1;
    md_status status = MD_BAD_ROW;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOO:sample", &row, &chain, &seed, &position, &suppressed, &scratch)) return NULL;
    if (md_get_floats(row, "row", 1, 0, &view) < 0) return NULL;
    const size_t n = (size_t)view.len / sizeof(float);
    int failed = get_request(chain, seed, position, suppressed, scratch, n, &r) < 0;
    if (!failed) {
        failed = md_check_apart(&r.scratch, &view) < 0;
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            status = md_sample(view.buf, n, &r.choice, r.position, r.scratch.buf, &token);
            Py_END_ALLOW_THREADS
        }
        drop(&r);
    }
    PyBuffer_Release(&view);
    if (failed) return NULL;
    return status == MD_OK ? PyLong_FromLong(token) : md_bad_numbers();
}

static int check_outputs(const request *r, const Py_buffer *out, const Py_buffer *views, Py_ssize_t n_rows) {
    if (md_check_apart(out, &r->scratch) < 0) return -1;
    for (Py_ssize_t k = 0; k < n_rows; k++)
        if (md_check_apart(out, &views[k]) < 0 || md_check_apart(&r->scratch, &views[k]) < 0) return -1;
    return 0;
}

/* rows[n_rows] of a mixture without a base: the weights sum to 1; all 0, they are equal. */
static void renormalise(md_row *rows, Py_ssize_t n_rows) {
    double sum = 0.0;
    for (Py_ssize_t k = 0; k < n_rows; k++) sum += rows[k].weight;
    for (Py_ssize_t k = 0; k < n_rows; k++) rows[k].weight = sum > 0.0 ? rows[k].weight / sum : 1.0 / (double)n_rows;
}

static md_status draft(const md_row *rows, size_t n_rows, const request *r, float *out, size_t n_vocab,
                       int32_t *token) {
    md_stats stats[MD_MAX_ROWS];
    const size_t length = rows[0].length < n_vocab ? rows[0].length : n_vocab;
    if (n_rows == 1 && rows[0].temperature == 1.0)
        return md_sample(rows[0].logits, length, &r->choice, r->position, r->scratch.buf, token);
    const md_status status = md_mix(rows, n_rows, NULL, 0, out, n_vocab, stats);
    return status != MD_OK ? status : md_sample(out, n_vocab, &r->choice, r->position, r->scratch.buf, token);
}

static PyObject *native_draft(PyObject *module, PyObject *args) {
    PyObject *memories, *weights, *temperatures, *chain, *seed, *position, *suppressed, *target, *scratch;
    md_row all[MD_MAX_ROWS], *rows = all + 1; /* no base */
    Py_buffer views[MD_MAX_ROWS], out;
    request r;
    int32_t token = -1;
    md_status status = MD_BAD_ROW;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOOOOO:draft", &memories, &weights, &temperatures, &chain, &seed, &position,
                          &suppressed, &target, &scratch))
        return NULL;
    const Py_ssize_t n_rows = md_get_mixture(weights, temperatures, all) - 1;
    if (n_rows < 0) return NULL;
    if (n_rows == 0) {
        PyErr_SetString(PyExc_ValueError, "a draft needs a memory");
        return NULL;
    }
    if (md_get_floats(target, "out", 1, PyBUF_WRITABLE, &out) < 0) return NULL;
    const size_t n_vocab = (size_t)out.len / sizeof(float);
    Py_ssize_t held = md_get_rows(NULL, memories, n_rows, 1, views);
    int failed = held < n_rows || get_request(chain, seed, position, suppressed, scratch, n_vocab, &r) < 0;
    if (!failed) {
        failed = check_outputs(&r, &out, views, n_rows) < 0;
        if (!failed) {
            for (Py_ssize_t k = 0; k < n_rows; k++) {
                rows[k].logits = views[k].buf;
                rows[k].length = (size_t)views[k].len / sizeof(float);
            }
            renormalise(rows, n_rows);
            Py_BEGIN_ALLOW_THREADS
            status = draft(rows, (size_t)n_rows, &r, out.buf, n_vocab, &token);
            Py_END_ALLOW_THREADS
        }
        drop(&r);
    }
    while (held > 0) PyBuffer_Release(&views[--held]);
    PyBuffer_Release(&out);
    if (failed) return NULL;
    return status == MD_OK ? PyLong_FromLong(token) : md_bad_numbers();
}

/* draft[MD_MAX_VERIFIED] from a sequence of token ids; its length, or -1 with an exception set. */
static Py_ssize_t get_draft(PyObject *sequence, int32_t *draft) {
    const Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0) return -1;
    if (n > MD_MAX_VERIFIED) {
        PyErr_Format(PyExc_ValueError, "a draft of %zd tokens; at most %d", n, MD_MAX_VERIFIED);
        return -1;
    }
    for (Py_ssize_t j = 0; j < n; j++) {
        PyObject *item = PySequence_GetItem(sequence, j);
        if (item == NULL) return -1;
        const long token = PyLong_AsLong(item);
        Py_DECREF(item);
        if (token == -1 && PyErr_Occurred()) return -1;
        draft[j] = token < 0 || token > INT32_MAX ? -1 : (int32_t)token; /* no sample is -1: it is never accepted */
    }
    return n;
}

/* [n_positions, length] each, as many positions in all, one more or as many as drafted tokens. */
static int get_matrices(const Py_buffer *views, Py_ssize_t n_rows, Py_ssize_t n_draft, const Py_buffer *out,
                        md_row *rows) {
    const Py_ssize_t n_positions = views[0].shape[0];
    if (n_positions > MD_MAX_VERIFIED || (n_draft != n_positions && n_draft != n_positions - 1)) {
        PyErr_Format(PyExc_ValueError, "%zd positions for a draft of %zd tokens", n_positions, n_draft);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        if (views[k].shape[0] != n_positions) {
            PyErr_Format(PyExc_ValueError, "memory %zd has %zd positions and the base %zd", k, views[k].shape[0],
                         n_positions);
            return -1;
        }
        rows[k].logits = views[k].buf;
        rows[k].length = (size_t)views[k].shape[1];
    }
    if (rows[0].length == (size_t)out->len / sizeof(float)) return 0;
    PyErr_Format(PyExc_ValueError, "out has %zd bytes and not those of one row of the base", out->len);
    return -1;
}

static PyObject *sampled_tuple(const md_sampled *sampled, size_t n_voices) {
    PyObject *log_probs = md_numbers_tuple(sampled->log_probs, n_voices);
    PyObject *weights = log_probs == NULL ? NULL : md_numbers_tuple(sampled->weights, n_voices);
    if (weights == NULL) Py_CLEAR(log_probs);
    return weights == NULL ? NULL : Py_BuildValue("(idNN)", (int)sampled->token, sampled->log_prob, log_probs, weights);
}

static PyObject *verified(const md_weights *weights, const md_sampled *sampled, size_t n_sampled, const md_stats *stats,
                          size_t n_rows, size_t n_sparse) {
    PyObject *list = PyList_New((Py_ssize_t)n_sampled);
    for (size_t j = 0; list != NULL && j < n_sampled; j++) {
        PyObject *item = sampled_tuple(&sampled[j], n_rows + n_sparse);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)j, item) < 0) Py_CLEAR(list);
    }
    PyObject *numbers = list == NULL ? NULL : md_stats_list(stats, n_rows);
    PyObject *after = numbers == NULL ? NULL : md_classes_tuple(weights, n_rows, n_sparse);
    if (after != NULL) return Py_BuildValue("(NNN)", list, numbers, after);
    Py_XDECREF(numbers);
    Py_XDECREF(list);
    return NULL;
}

static PyObject *native_verify(PyObject *module, PyObject *args) {
    PyObject *base, *memories, *vectors, *temperatures, *learning, *tokens, *target;
    PyObject *chain, *seed, *position, *suppressed, *scratch, *found;
    md_row rows[MD_MAX_ROWS];
    md_weights weights;
    md_matches matches;
    Py_ssize_t n_sparse;
    md_stats stats[MD_MAX_ROWS];
    md_sampled sampled[MD_MAX_VERIFIED];
    int32_t drafted[MD_MAX_VERIFIED];
    Py_buffer views[MD_MAX_ROWS], out;
    md_rule rule;
    request r;
    size_t n_sampled = 0;
    md_status status = MD_BAD_ROW;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOOOOOOOOO:verify", &base, &memories, &vectors, &temperatures, &learning, &chain,
                          &seed, &position, &suppressed, &tokens, &target, &scratch, &found))
        return NULL;
    const Py_ssize_t n_rows = md_get_voices(vectors, temperatures, &weights, rows, &n_sparse);
    const int has_rule = n_rows < 0 ? -1 : md_get_rule(learning, n_rows, n_sparse, &rule);
    const Py_ssize_t n_draft = has_rule < 0 ? -1 : get_draft(tokens, drafted);
    if (n_draft < 0) return NULL;
    if (md_get_floats(target, "out", 1, PyBUF_WRITABLE, &out) < 0) return NULL;
    const size_t n_vocab = (size_t)out.len / sizeof(float);
    Py_ssize_t held = md_get_rows(base, memories, n_rows, 2, views);
    int failed = held < n_rows || get_matrices(views, n_rows, n_draft, &out, rows) < 0 ||
                 get_request(chain, seed, position, suppressed, scratch, n_vocab, &r) < 0;
    if (!failed) {
        failed = check_outputs(&r, &out, views, n_rows) < 0 ||
                 md_get_matches(found, views[0].shape[0], n_sparse, n_vocab, &matches) < 0;
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            status = md_verify(rows, (size_t)n_rows, matches.of, (size_t)n_sparse, (size_t)views[0].shape[0], &weights,
                               has_rule ? &rule : NULL, drafted, (size_t)n_draft, &r.choice, r.position, out.buf,
                               n_vocab, r.scratch.buf, stats, sampled, &n_sampled);
            Py_END_ALLOW_THREADS
            md_drop_matches(&matches);
        }
        drop(&r);
    }
    while (held > 0) PyBuffer_Release(&views[--held]);
    PyBuffer_Release(&out);
    if (failed) return NULL;
    return status == MD_OK ? verified(&weights, sampled, n_sampled, stats, (size_t)n_rows, (size_t)n_sparse)
                           : md_bad_numbers();
}

PyMethodDef md_sample_methods[] = {
    {"sample", native_sample, METH_VARARGS, NULL},
    {"draft", native_draft, METH_VARARGS, NULL},
    {"verify", native_verify, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
