/* What the files of memdec_edge._native share: arguments checked into C, numbers turned into Python (arguments.c). */
#ifndef MEMDEC_MODULE_H
#define MEMDEC_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "mix.h"

/* A C-contiguous float32 buffer of n_dims dimensions and at least one element. -1: an exception is set. */
int md_get_floats(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view);

/* rows[0]: weight 1 - sum of the weights, T = 1; rows[1 ..]: weights and temperatures; no logits. Their number, or
 * -1 with an exception set. Mixture (mixture/weights.py) has checked the ranges. */
Py_ssize_t md_get_mixture(PyObject *weights, PyObject *temperatures, md_row *rows);

/* views[n_rows] of n_dims dimensions, the first of `base` where that is not NULL. How many are held and to be released:
 * fewer than n_rows with an exception set. */
Py_ssize_t md_get_rows(PyObject *base, PyObject *memories, Py_ssize_t n_rows, int n_dims, Py_buffer *views);

/* -1 with an exception set if they share memory. */
int md_check_apart(const Py_buffer *out, const Py_buffer *input);

PyObject *md_stats_tuple(const md_stats *stats);
PyObject *md_stats_list(const md_stats *stats, size_t n);
PyObject *md_bad_numbers(void); /* sets FloatingPointError, returns NULL */

extern PyMethodDef md_sample_methods[]; /* module_sample.c */

#endif
