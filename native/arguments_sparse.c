/* Arguments of memdec_edge._native that indexes have: a vector of weights for each class, matches. */
#include "module.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Vectors of one class or of all: weights->of. Voices without the indexes; *n_sparse: the indexes. -1: an exception. */
static Py_ssize_t get_classes(PyObject *vectors, md_weights *weights, Py_ssize_t *n_sparse) {
    const Py_ssize_t n_classes = PySequence_Size(vectors);
    Py_ssize_t n_rows = -1, n_voices = -1;
    if (n_classes < 0) return -1;
    if (n_classes != 1 && n_classes != MD_CLASSES) {
        PyErr_Format(PyExc_ValueError, "weights of %zd classes, neither of 1 nor of %d", n_classes, MD_CLASSES);
        return -1;
    }
    for (Py_ssize_t c = 0; c < n_classes; c++) {
        PyObject *vector = PySequence_GetItem(vectors, c);
        const Py_ssize_t n = vector == NULL ? -1 : md_get_weights(vector, weights->of[c]);
        Py_XDECREF(vector);
        if (n < 0) return -1;
        if (c == 0) n_rows = n_voices = n;
        if (c == 1) n_voices = n;
        if (n != (c == 0 ? n_rows : n_voices) || n_voices < n_rows) {
            PyErr_Format(PyExc_ValueError, "class %zd has weights of %zd voices", c, n);
            return -1;
        }
    }
    *n_sparse = n_voices - n_rows;
    return n_rows;
}

Py_ssize_t md_get_voices(PyObject *vectors, PyObject *temperatures, md_weights *weights, md_row *rows,
                         Py_ssize_t *n_sparse) {
    double t[MD_MAX_ROWS] = {1.0}; /* the base's temperature is 1 */
    const Py_ssize_t n_rows = get_classes(vectors, weights, n_sparse);
    if (n_rows < 0) return -1;
    const Py_ssize_t n = temperatures == NULL ? n_rows - 1 : md_get_memories(temperatures, "temperatures", t);
    if (n < 0) return -1;
    if (n != n_rows - 1) {
        PyErr_Format(PyExc_ValueError, "%zd weights and %zd temperatures", n_rows - 1, n);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        rows[k].weight = weights->of[0][k];
        rows[k].temperature = t[k];
    }
    return n_rows;
}

int md_get_rule(PyObject *object, Py_ssize_t n_rows, Py_ssize_t n_sparse, md_rule *rule) {
    PyObject *initial;
    Py_ssize_t sparse;
    if (object == Py_None) return 0;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "rule must be None or a tuple (initial weights, eta, share)");
        return -1;
    }
    if (!PyArg_ParseTuple(object, "Odd:rule", &initial, &rule->eta, &rule->share)) return -1;
    const Py_ssize_t n = get_classes(initial, &rule->initial, &sparse);
    if (n < 0 || (n == n_rows && sparse == n_sparse)) return n < 0 ? -1 : 1;
    PyErr_Format(PyExc_ValueError, "initial weights for %zd memories and %zd indexes, not for %zd and %zd", n - 1, sparse,
                 n_rows - 1, n_sparse);
    return -1;
}

int md_get_class_array(PyObject *object, Py_ssize_t rows, Py_ssize_t columns, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) return -1;
    const char *format = view->format ? view->format : "B";
    if (strlen(format) != 1 || strchr("il", *format) == NULL || view->itemsize != 4 || view->ndim != 2 ||
        (uintptr_t)view->buf % 4 != 0) {
        PyErr_SetString(PyExc_TypeError, "classes must hold int32 in 2 dimensions, aligned to 4 bytes");
    } else {
        const int32_t *classes = view->buf;
        int fits = view->shape[0] == rows && view->shape[1] == columns;
        for (Py_ssize_t i = 0; fits && i < rows * columns; i++) fits = classes[i] >= 0 && classes[i] < MD_CLASSES;
        if (fits) return 0;
        PyErr_Format(PyExc_ValueError, "classes must be from 0 to %d, %zd by %zd of them", MD_CLASSES - 1, rows,
                     columns);
    }
    PyBuffer_Release(view);
    return -1;
}

/* What one index says at one position; its views are held from here on, also where it fails. */
static int get_match(PyObject *object, size_t n_vocab, md_matches *m, md_sparse *match) {
    PyObject *ids, *probs;
    Py_buffer *views = &m->views[m->n_views];
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a match must be a tuple (class, ids, probs)");
        return -1;
    }
    if (!PyArg_ParseTuple(object, "iOO:match", &match->klass, &ids, &probs)) return -1;
    if (md_get_numbers(ids, "ids", "int32", 0, &views[0]) < 0) return -1;
    m->n_views++;
    if (md_get_numbers(probs, "probs", "float32", 0, &views[1]) < 0) return -1;
    m->n_views++;
    match->ids = views[0].buf;
    match->probs = views[1].buf;
    match->length = (size_t)views[0].len / sizeof(int32_t);
    match->weight = 0.0;
    int fits = views[0].len == views[1].len && match->klass >= 0 && match->klass < MD_CLASSES &&
               (match->length > 0) == (match->klass > 0);
    for (size_t i = 0; fits && i < match->length; i++)
        fits = match->ids[i] >= 0 && (size_t)match->ids[i] < n_vocab && match->probs[i] > 0.0f &&
               match->probs[i] <= 1.0f;
    if (fits) return 0;
    PyErr_SetString(PyExc_ValueError, "a match whose class, ids and probabilities do not fit each other");
    return -1;
}

/* Item i of a sequence that must have n; NULL: an exception is set. */
static PyObject *get_item(PyObject *sequence, Py_ssize_t n, Py_ssize_t i, const char *what) {
    const Py_ssize_t found = PySequence_Size(sequence);
    if (found == n) return PySequence_GetItem(sequence, i);
    if (found >= 0) PyErr_Format(PyExc_ValueError, "matches of %zd %s, not of %zd", found, what, n);
    return NULL;
}

int md_get_matches(PyObject *object, Py_ssize_t n_positions, Py_ssize_t n_sparse, size_t n_vocab, md_matches *m) {
    m->n_views = 0;
    if (object == Py_None && n_sparse == 0) return 0;
    for (Py_ssize_t j = 0; j < n_positions; j++) {
        PyObject *position = get_item(object, n_positions, j, "positions");
        int failed = position == NULL;
        for (Py_ssize_t k = 0; !failed && k < n_sparse; k++) {
            PyObject *item = get_item(position, n_sparse, k, "indexes");
            failed = item == NULL || get_match(item, n_vocab, m, &m->of[j * n_sparse + k]) < 0;
            Py_XDECREF(item); /* the views hold what they need */
        }
        Py_XDECREF(position);
        if (failed) {
            md_drop_matches(m);
            return -1;
        }
    }
    return 0;
}

void md_drop_matches(md_matches *m) {
    while (m->n_views > 0) PyBuffer_Release(&m->views[--m->n_views]);
}

PyObject *md_classes_tuple(const md_weights *weights, size_t n_rows, size_t n_sparse) {
    const Py_ssize_t n_classes = n_sparse > 0 ? MD_CLASSES : 1;
    PyObject *tuple = PyTuple_New(n_classes);
    for (Py_ssize_t c = 0; tuple != NULL && c < n_classes; c++) {
        PyObject *item = md_numbers_tuple(weights->of[c] + 1, n_rows - 1 + (c > 0 ? n_sparse : 0));
        if (item == NULL || PyTuple_SetItem(tuple, c, item) < 0) Py_CLEAR(tuple);
    }
    return tuple;
}
