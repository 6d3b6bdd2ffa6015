/* A copy of one tensor of llama.cpp's graph, in each pass. Knows nothing of models and of what the tensor means. */
#ifndef MEMDEC_TAP_H
#define MEMDEC_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Caller-owned; memdec_edge/llama/tap.py declares the same struct for ctypes. The functions are ggml's, by address. */
typedef struct md_tap {
    const char *name;                                            /* of the wanted tensor */
    const char *(*get_name)(const void *tensor);                 /* ggml_get_name */
    size_t (*nbytes)(const void *tensor);                        /* ggml_nbytes */
    void (*get)(const void *tensor, void *, size_t at, size_t n); /* ggml_backend_tensor_get: from wherever it lies */
    char *rows;                                                  /* room for `size` bytes */
    size_t size;
    size_t used; /* bytes of all passes since the caller set it to 0; it stores none beyond `size` */
    int32_t last; /* 1: the pass may end after the tensor */
} md_tap;

/* llama.cpp's cb_eval (ggml_backend_sched_eval_callback): asked whether `tensor` is wanted, then given it computed. In C,
 * because Python would raise a Ctrl-C inside a callback of its own, where ctypes drops it. */
bool md_tap_callback(void *tensor, bool ask, void *data);

#endif
