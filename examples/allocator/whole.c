/* An allocator in C: whole chunks of the source, kept and used again for blocks of at least half their size.
 *
 *     cc -shared -fPIC -I include -o libwhole.so examples/allocator/whole.c
 *     skep replay trace.csv --allocator ./libwhole.so --allocator mxnet_naive
 */
#include <stdlib.h>

#include "skep_allocator.h"

struct chunk { uint64_t address, size, bytes; struct chunk *next; }; /* `bytes` is 0 while no block is in it. */
struct whole { const skep_source *source; struct chunk *chunks; };

void *skep_allocator_create(uint32_t abi, const skep_source *source, const char *options) {
    struct whole *self = abi == SKEP_ALLOCATOR_ABI && !*options ? calloc(1, sizeof *self) : NULL;
    if (self) self->source = source;
    return self;
}

uint64_t skep_allocator_malloc(void *me, uint64_t bytes, uint64_t alignment, uint64_t stream) {
    struct whole *self = me;
    struct chunk *best = NULL;
    uint64_t size = (bytes + 4095) / 4096 * 4096;
    (void)stream; /* A block is used again at once, whatever its stream: right for a host, not for a device. */
    for (struct chunk *chunk = self->chunks; chunk; chunk = chunk->next)
        if (!chunk->bytes && chunk->size >= size && chunk->size / 2 <= size && chunk->address % alignment == 0
            && (!best || chunk->size < best->size)) best = chunk;
    if (!best) {
        uint64_t address = alignment > 512 ? 0 : self->source->take(self->source->context, size);
        if (!address || !(best = malloc(sizeof *best))) return 0;
        *best = (struct chunk){ address, size, 0, self->chunks };
        self->chunks = best;
    }
    best->bytes = bytes;
    return best->address;
}

uint64_t skep_allocator_free(void *me, uint64_t address) {
    for (struct chunk *chunk = ((struct whole *)me)->chunks; chunk; chunk = chunk->next)
        if (chunk->address == address) { uint64_t bytes = chunk->bytes; chunk->bytes = 0; return bytes; }
    return 0;
}

void skep_allocator_trim(void *me) {
    struct whole *self = me;
    for (struct chunk **link = &self->chunks, *chunk; (chunk = *link);) {
        if (chunk->bytes) { link = &chunk->next; continue; }
        *link = chunk->next;
        self->source->give_back(self->source->context, chunk->address, chunk->size);
        free(chunk);
    }
}

void skep_allocator_stats(const void *me, skep_allocator_figures *figures) {
    *figures = (skep_allocator_figures){ 0 };
    for (struct chunk *chunk = ((const struct whole *)me)->chunks; chunk; chunk = chunk->next) {
        figures->reserved += chunk->size;
        figures->in_use += chunk->bytes;
        figures->padding += chunk->bytes ? chunk->size - chunk->bytes : 0;
        if (!chunk->bytes && chunk->size > figures->largest_free) figures->largest_free = chunk->size;
    }
}

void skep_allocator_destroy(void *me) {
    for (struct chunk *chunk = ((struct whole *)me)->chunks, *next; chunk; chunk = next) { next = chunk->next; free(chunk); }
    free(me);
}
