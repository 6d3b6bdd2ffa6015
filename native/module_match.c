/* Python's side of match.c and order.c, described in memdec_edge/_native.pyi. */
#include "module.h"

#include <stdint.h>

#include "match.h"

/* Documents' tokens, uint16 or uint32; `view` is held by the caller afterwards. -1: an exception is set. */
static int get_tokens(PyObject *object, Py_ssize_t n_vocab, Py_buffer *view, md_tokens *tokens) {
    if (n_vocab < 1 || n_vocab > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "n_vocab %zd is not from 1 to 2^31 - 1", n_vocab);
        return -1;
    }
    if (md_get_numbers(object, "tokens", "uint16", 0, view) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) return -1;
        PyErr_Clear();
        if (md_get_numbers(object, "tokens", "uint32", 0, view) < 0) return -1;
    }
    tokens->ids = view->buf;
    tokens->narrow = view->itemsize == 2;
    tokens->n = (size_t)(view->len / view->itemsize);
    tokens->n_vocab = (uint32_t)n_vocab;
    if (tokens->n <= UINT32_MAX) return 0;
    PyErr_Format(PyExc_ValueError, "%zd tokens are more than 2^32 - 1", (Py_ssize_t)tokens->n);
    PyBuffer_Release(view);
    return -1;
}

static PyObject *native_match(PyObject *module, PyObject *args) {
    PyObject *documents, *order, *read, *found, *shares, *result = NULL;
    Py_ssize_t n_vocab;
    Py_buffer ids, prefixes, context, out, probs;
    md_tokens tokens;
    md_match match;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOnOOO:match", &documents, &order, &n_vocab, &read, &found, &shares)) return NULL;
    if (get_tokens(documents, n_vocab, &ids, &tokens) < 0) return NULL;
    if (md_get_numbers(order, "prefixes", "uint32", 0, &prefixes) < 0) goto release_ids;
    if (md_get_numbers(read, "context", "int32", 0, &context) < 0) goto release_prefixes;
    if (md_get_numbers(found, "ids", "int32", PyBUF_WRITABLE, &out) < 0) goto release_context;
    if (md_get_numbers(shares, "probs", "float32", PyBUF_WRITABLE, &probs) < 0) goto release_out;
    if (out.len < MD_MOST * 4 || probs.len < MD_MOST * 4) {
        PyErr_Format(PyExc_ValueError, "ids and probs must have room for %d tokens", MD_MOST);
    } else if (md_check_apart(&out, &context) == 0 && md_check_apart(&out, &probs) == 0 &&
               md_check_apart(&probs, &context) == 0) {
        const size_t length = (size_t)context.len / sizeof(int32_t);
        const int32_t *newest = length ? (const int32_t *)context.buf + length - 1 : NULL;
        Py_BEGIN_ALLOW_THREADS
        match = md_longest_match(&tokens, prefixes.buf, (size_t)prefixes.len / sizeof(uint32_t), newest, length,
                                 out.buf, probs.buf);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("nnn", (Py_ssize_t)match.length, (Py_ssize_t)match.count,
                               match.length ? (Py_ssize_t)match.where : -1);
    }
    PyBuffer_Release(&probs);
release_out:
    PyBuffer_Release(&out);
release_context:
    PyBuffer_Release(&context);
release_prefixes:
    PyBuffer_Release(&prefixes);
release_ids:
    PyBuffer_Release(&ids);
    return result;
}

static PyObject *native_group_prefixes(PyObject *module, PyObject *args) {
    PyObject *documents, *out, *ends, *result = NULL;
    Py_ssize_t n_vocab;
    Py_buffer ids, prefixes, places;
    md_tokens tokens;
    size_t count;
    (void)module;
    if (!PyArg_ParseTuple(args, "OnOO:group_prefixes", &documents, &n_vocab, &out, &ends)) return NULL;
    if (get_tokens(documents, n_vocab, &ids, &tokens) < 0) return NULL;
    if (md_get_numbers(out, "prefixes", "uint32", PyBUF_WRITABLE, &prefixes) == 0) {
        if (md_get_numbers(ends, "ends", "uint64", PyBUF_WRITABLE, &places) == 0) {
            const size_t m = (size_t)prefixes.len / sizeof(uint32_t);
            if (places.len != n_vocab * 8) {
                PyErr_Format(PyExc_ValueError, "ends has %zd bytes for %zd tokens", places.len, n_vocab);
            } else if (md_check_apart(&prefixes, &ids) == 0 && md_check_apart(&places, &ids) == 0 &&
                       md_check_apart(&prefixes, &places) == 0) {
                Py_BEGIN_ALLOW_THREADS
                count = md_group_prefixes(&tokens, prefixes.buf, m, places.buf);
                Py_END_ALLOW_THREADS
                if (count == m) result = Py_NewRef(Py_None);
                else PyErr_Format(PyExc_ValueError, "room for %zd prefixes of %zd", (Py_ssize_t)m, (Py_ssize_t)count);
            }
            PyBuffer_Release(&places);
        }
        PyBuffer_Release(&prefixes);
    }
    PyBuffer_Release(&ids);
    return result;
}

static PyObject *native_sort_prefixes(PyObject *module, PyObject *args) {
    PyObject *documents, *out, *result = NULL;
    Py_ssize_t n_vocab, shared;
    Py_buffer ids, prefixes;
    md_tokens tokens;
    (void)module;
    if (!PyArg_ParseTuple(args, "OnOn:sort_prefixes", &documents, &n_vocab, &out, &shared)) return NULL;
    if (get_tokens(documents, n_vocab, &ids, &tokens) < 0) return NULL;
    if (md_get_numbers(out, "prefixes", "uint32", PyBUF_WRITABLE, &prefixes) == 0) {
        if (shared < 0 || shared > MD_LONGEST) {
            PyErr_Format(PyExc_ValueError, "%zd shared tokens are not from 0 to %d", shared, MD_LONGEST);
        } else if (md_check_apart(&prefixes, &ids) == 0) {
            Py_BEGIN_ALLOW_THREADS
            md_sort_prefixes(&tokens, prefixes.buf, (size_t)prefixes.len / sizeof(uint32_t), (size_t)shared);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
        PyBuffer_Release(&prefixes);
    }
    PyBuffer_Release(&ids);
    return result;
}

PyMethodDef md_match_methods[] = {
    {"match", native_match, METH_VARARGS, NULL},
    {"group_prefixes", native_group_prefixes, METH_VARARGS, NULL},
    {"sort_prefixes", native_sort_prefixes, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
