/* Stopping a long llama_decode: a flag, and Python's signals. Knows nothing of models. */
#ifndef MEMDEC_ABORT_H
#define MEMDEC_ABORT_H

#include <stdbool.h>
#include <stdint.h>

enum { MD_ABORT_ASKED = 1, MD_ABORT_RAISED = 2 }; /* a thread asked for it; a signal handler of Python's raised */

/* Owned by the caller, who sets and lowers the flag. */
typedef struct {
    int32_t flag; /* not 0: stop */
    void *error;  /* with MD_ABORT_RAISED: what the handler raised, a PyObject with a reference for the caller */
} md_abort;

/* llama.cpp asks this before each graph node, in the thread that called llama_decode, which ctypes took the GIL from.
 * `data`: an md_abort. */
bool md_abort_callback(void *data);

/* Once, with the GIL. -1 with a Python error set. */
int md_abort_setup(void);

#endif
