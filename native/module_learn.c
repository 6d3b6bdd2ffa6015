/* Python's side of learn.c: learn of memdec_edge._native, described in memdec_edge/_native.pyi. */
#include "module.h"

#include <math.h>
#include <stdint.h>

#include "learn.h"

/* log_probs[n_rows, n_tokens]. For each token mixed[n_tokens] gets the mixture's log-prob, path[n_rows, n_tokens] the
 * weights that met it. */
static md_status learn(double *weights, size_t n_rows, size_t n_tokens, const md_rule *rule, const double *log_probs,
                       double *mixed, double *path) {
    double column[MD_MAX_ROWS];
    for (size_t j = 0; j < n_tokens; j++) {
        for (size_t k = 0; k < n_rows; k++) {
            column[k] = log_probs[k * n_tokens + j];
            path[k * n_tokens + j] = weights[k];
            if (!(column[k] < INFINITY)) return MD_BAD_ROW;
        }
        mixed[j] = md_learn(weights, n_rows, rule, column);
    }
    return MD_OK;
}

static int check_shapes(const Py_buffer *given, const Py_buffer *mixed, const Py_buffer *path, Py_ssize_t n_rows) {
    if (given->shape[0] == n_rows && path->shape[0] == n_rows && path->shape[1] == given->shape[1] &&
        mixed->shape[0] == given->shape[1])
        return md_check_apart(mixed, given) < 0 || md_check_apart(path, given) < 0 ? -1 : md_check_apart(mixed, path);
    PyErr_Format(PyExc_ValueError, "%zd weights for log-probs of %zd models by %zd tokens, outputs for %zd tokens", n_rows,
                 given->shape[0], given->shape[1], mixed->shape[0]);
    return -1;
}

static PyObject *native_learn(PyObject *module, PyObject *args) {
    PyObject *memories, *object, *log_probs, *out, *way, *result = NULL;
    Py_buffer given, mixed, path;
    double weights[MD_MAX_ROWS];
    md_rule rule;
    md_status status;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOO:learn", &memories, &object, &log_probs, &out, &way)) return NULL;
    const Py_ssize_t n_rows = md_get_weights(memories, weights);
    if (n_rows < 0) return NULL;
    const int has_rule = md_get_rule(object, n_rows, &rule);
    if (has_rule == 0) PyErr_SetString(PyExc_TypeError, "learning needs a rule");
    if (has_rule != 1 || md_get_doubles(log_probs, "log_probs", 2, 0, &given) < 0) return NULL;
    if (md_get_doubles(out, "mixed", 1, PyBUF_WRITABLE, &mixed) == 0) {
        if (md_get_doubles(way, "weights", 2, PyBUF_WRITABLE, &path) == 0) {
            if (check_shapes(&given, &mixed, &path, n_rows) == 0) {
                Py_BEGIN_ALLOW_THREADS
                status = learn(weights, (size_t)n_rows, (size_t)given.shape[1], &rule, given.buf, mixed.buf, path.buf);
                Py_END_ALLOW_THREADS
                result = status == MD_OK ? md_numbers_tuple(weights + 1, (size_t)n_rows - 1) : md_bad_numbers();
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
