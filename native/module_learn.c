/* Python's side of learn.c: learn of memdec_edge._native, described in memdec_edge/_native.pyi. */
#include "module.h"

#include <math.h>
#include <stdint.h>

#include "learn.h"

typedef struct {
    md_weights weights;
    size_t n_rows, n_sparse, n_tokens;
    const double *log_probs; /* [n_rows + n_sparse, n_tokens] */
    const int32_t *classes;  /* of the matches before each token, [n_sparse, n_tokens] */
    double *mixed, *path;    /* the mixture's log-prob of each token; the weights that met it, [as log_probs] */
} lesson;

static md_status learn(lesson *l, const md_rule *rule) {
    double column[MD_MAX_ROWS];
    md_row rows[MD_MAX_ROWS];
    md_sparse matches[MD_MAX_ROWS];
    for (size_t j = 0; j < l->n_tokens; j++) {
        for (size_t k = 0; k < l->n_sparse; k++) matches[k].klass = l->classes[k * l->n_tokens + j];
        const size_t klass = md_speak(&l->weights, rows, l->n_rows, matches, l->n_sparse);
        for (size_t k = 0; k < l->n_rows + l->n_sparse; k++) {
            const int is_index = k >= l->n_rows;
            column[k] = l->log_probs[k * l->n_tokens + j];
            l->path[k * l->n_tokens + j] = is_index ? matches[k - l->n_rows].weight : rows[k].weight;
            if (is_index && matches[k - l->n_rows].klass == 0) column[k] = NAN;
            else if (!(column[k] < INFINITY)) return MD_BAD_ROW;
        }
        const size_t n_voices = klass > 0 ? l->n_rows + l->n_sparse : l->n_rows;
        l->mixed[j] = md_learn(l->weights.of[klass], n_voices, rule, klass, column);
    }
    return MD_OK;
}

static int check_shapes(const Py_buffer *given, const Py_buffer *mixed, const Py_buffer *path, Py_ssize_t n_voices) {
    if (given->shape[0] == n_voices && path->shape[0] == n_voices && path->shape[1] == given->shape[1] &&
        mixed->shape[0] == given->shape[1])
        return md_check_apart(mixed, given) < 0 || md_check_apart(path, given) < 0 ? -1 : md_check_apart(mixed, path);
    PyErr_Format(PyExc_ValueError, "%zd weights for log-probs of %zd voices by %zd tokens, outputs for %zd tokens",
                 n_voices, given->shape[0], given->shape[1], mixed->shape[0]);
    return -1;
}

static PyObject *run(lesson *l, const md_rule *rule, PyObject *found) {
    Py_buffer classes;
    md_status status;
    if (md_get_class_array(found, (Py_ssize_t)l->n_sparse, (Py_ssize_t)l->n_tokens, &classes) < 0) return NULL;
    l->classes = classes.buf;
    Py_BEGIN_ALLOW_THREADS
    status = learn(l, rule);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&classes);
    return status == MD_OK ? md_classes_tuple(&l->weights, l->n_rows, l->n_sparse) : md_bad_numbers();
}

static PyObject *native_learn(PyObject *module, PyObject *args) {
    PyObject *vectors, *object, *log_probs, *out, *way, *classes, *result = NULL;
    Py_buffer given, mixed, path;
    md_row rows[MD_MAX_ROWS];
    Py_ssize_t n_sparse;
    md_rule rule;
    lesson l;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOO:learn", &vectors, &object, &log_probs, &out, &way, &classes)) return NULL;
    const Py_ssize_t n_rows = md_get_voices(vectors, NULL, &l.weights, rows, &n_sparse);
    if (n_rows < 0) return NULL;
    const int has_rule = md_get_rule(object, n_rows, n_sparse, &rule);
    if (has_rule == 0) PyErr_SetString(PyExc_TypeError, "learning needs a rule");
    if (has_rule != 1 || md_get_doubles(log_probs, "log_probs", 2, 0, &given) < 0) return NULL;
    if (md_get_doubles(out, "mixed", 1, PyBUF_WRITABLE, &mixed) == 0) {
        if (md_get_doubles(way, "weights", 2, PyBUF_WRITABLE, &path) == 0) {
            if (check_shapes(&given, &mixed, &path, n_rows + n_sparse) == 0) {
                l.n_rows = (size_t)n_rows;
                l.n_sparse = (size_t)n_sparse;
                l.n_tokens = (size_t)given.shape[1];
                l.log_probs = given.buf;
                l.mixed = mixed.buf;
                l.path = path.buf;
                result = run(&l, &rule, classes);
            }
            PyBuffer_Release(&path);
        }
        PyBuffer_Release(&mixed);
    }
    PyBuffer_Release(&given);
    return result;
}

PyMethodDef md_learn_methods[] = {
    {"learn", native_learn, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
