/* What the files of memdec_edge._native share: arguments checked into C, numbers turned into Python (arguments.c,
 * arguments_sparse.c). */
#ifndef MEMDEC_MODULE_H
#define MEMDEC_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "learn.h"
#include "mix.h"
#include "sample.h"

/* A C-contiguous buffer of float32 or float64, n_dims dimensions, at least one element. -1: an exception is set. */
int md_get_floats(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view);
int md_get_doubles(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view);

/* A C-contiguous buffer of uint16, uint32, int32, uint64 or float32 (`kind`) in one dimension; it may be empty. */
int md_get_numbers(PyObject *object, const char *what, const char *kind, int flags, Py_buffer *view);

/* numbers[1 .. n] from a sequence of n < MD_MAX_ROWS; n, or -1 with an exception set. */
Py_ssize_t md_get_memories(PyObject *sequence, const char *what, double *numbers);

/* weights[0] = 1 - sum of the memories' weights, which follow. Their number, or -1 with an exception set. Mixture
 * (mixture/weights.py) has checked the ranges. */
Py_ssize_t md_get_weights(PyObject *sequence, double *weights);

/* The same as rows with temperatures, the base's 1, and no logits. */
Py_ssize_t md_get_mixture(PyObject *weights, PyObject *temperatures, md_row *rows);

/* Weights of each class, or of one where no index is: a sequence of sequences. rows: as md_get_mixture gives them, with
 * the weights of class 0; temperatures: NULL for 1. *n_sparse: indexes. The number of rows, or -1 with an exception. */
Py_ssize_t md_get_voices(PyObject *vectors, PyObject *temperatures, md_weights *weights, md_row *rows,
                         Py_ssize_t *n_sparse);

/* None, or a tuple (initial weights of each class, eta, share). 1 where there is a rule, 0 for None, -1 with an exception
 * set. */
int md_get_rule(PyObject *object, Py_ssize_t n_rows, Py_ssize_t n_sparse, md_rule *rule);

/* What indexes found; the views are held until md_drop_matches(). */
typedef struct {
    md_sparse of[MD_MAX_VERIFIED * (MD_MAX_ROWS - 1)]; /* [n_positions, n_sparse], without weights */
    Py_buffer views[2 * MD_MAX_VERIFIED * (MD_MAX_ROWS - 1)]; /* ids and probabilities of each */
    int n_views;
} md_matches;

/* None where no index is, or Matches of mixture/rows.py. -1: an exception is set, and no view is held. */
int md_get_matches(PyObject *object, Py_ssize_t n_positions, Py_ssize_t n_sparse, size_t n_vocab, md_matches *m);
void md_drop_matches(md_matches *m);

/* Classes of matches, int32 [rows, columns]. -1: an exception is set, and no view is held. */
int md_get_class_array(PyObject *object, Py_ssize_t rows, Py_ssize_t columns, Py_buffer *view);

/* views[n_rows] of n_dims dimensions, the first of `base` where that is not NULL. Returns how many views the caller
 * must release: fewer than n_rows with an exception set. */
Py_ssize_t md_get_rows(PyObject *base, PyObject *memories, Py_ssize_t n_rows, int n_dims, Py_buffer *views);

/* -1 with an exception set if they share memory. */
int md_check_apart(const Py_buffer *out, const Py_buffer *input);

PyObject *md_stats_tuple(const md_stats *stats);
PyObject *md_stats_list(const md_stats *stats, size_t n);
PyObject *md_classes_tuple(const md_weights *weights, size_t n_rows, size_t n_sparse);
PyObject *md_numbers_tuple(const double *numbers, size_t n);
PyObject *md_bad_numbers(void); /* sets FloatingPointError, returns NULL */

extern PyMethodDef md_sample_methods[]; /* module_sample.c */
extern PyMethodDef md_learn_methods[];  /* module_learn.c */
extern PyMethodDef md_match_methods[];  /* module_match.c */

#endif
