/* The tap on llama.cpp's computation. */
#include "tap.h"

#include <string.h>

bool md_tap_callback(void *tensor, bool ask, void *data) {
    md_tap *tap = data;
    if (ask) return strcmp(tap->get_name(tensor), tap->name) == 0;
    const size_t n = tap->nbytes(tensor);
    if (tap->used <= tap->size && n <= tap->size - tap->used) tap->get(tensor, tap->rows + tap->used, 0, n);
    tap->used += n;
    return tap->last == 0;
}
