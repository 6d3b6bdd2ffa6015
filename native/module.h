/* What the files of memdec_edge._native share: arguments checked into C, numbers turned into Python (arguments.c). */
#ifndef MEMDEC_MODULE_H
#define MEMDEC_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "learn.h"
#include "mix.h"

/* A C-contiguous buffer of float32 or float64, n_dims dimensions, at least one element. -1: an exception is set. */
int md_get_floats(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view);
int md_get_doubles(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view);

/* A C-contiguous buffer of uint16, uint32, int32, uint64 or float32 (`kind`) in one dimension; it may be empty. */
int md_get_numbers(PyObject *object, const char *what, const char *kind, int flags, Py_buffer *view);

/* weights[0] = 1 - sum of the memories' weights, which follow. Their number, or -1 with an exception set. Mixture
 * (mixture/weights.py) has checked the ranges. */
Py_ssize_t md_get_weights(PyObject *sequence, double *weights);

/* The same as rows with temperatures, the base's 1, and no logits. */
Py_ssize_t md_get_mixture(PyObject *weights, PyObject *temperatures, md_row *rows);

/* None, or a tuple (initial weights of the memories, eta, share). 1 where there is a rule, 0 for None, -1 with an
 * exception set. */
int md_get_rule(PyObject *object, Py_ssize_t n_rows, md_rule *rule);

/* views[n_rows] of n_dims dimensions, the first of `base` where that is not NULL. Returns how many views the caller
 * must release: fewer than n_rows with an exception set. */
Py_ssize_t md_get_rows(PyObject *base, PyObject *memories, Py_ssize_t n_rows, int n_dims, Py_buffer *views);

/* -1 with an exception set if they share memory. */
int md_check_apart(const Py_buffer *out, const Py_buffer *input);

PyObject *md_stats_tuple(const md_stats *stats);
PyObject *md_stats_list(const md_stats *stats, size_t n);
PyObject *md_numbers_tuple(const double *numbers, size_t n);
PyObject *md_bad_numbers(void); /* sets FloatingPointError, returns NULL */

extern PyMethodDef md_sample_methods[]; /* module_sample.c */
extern PyMethodDef md_learn_methods[];  /* module_learn.c */
extern PyMethodDef md_match_methods[];  /* module_match.c */

#endif
