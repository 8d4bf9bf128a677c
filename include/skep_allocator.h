/* An allocator of your own for Skep: a shared library with the functions below.
 *
 *     skep replay trace.csv --allocator ./libmine.so
 *     skep serve models --allocator-library mine=./libmine.so
 *
 * An allocator decides where blocks lie. It gets its memory from a source, which stands for the device: an imagined one,
 * mmap, or cudaMalloc. Addresses are numbers. An allocator must not read or write the memory behind them, since a host
 * cannot touch the memory of a GPU and an imagined device has none: its own notes lie in its own memory.
 *
 * One allocator is called by one thread at a time, but not always by the same one. Several may exist at once. Skep checks
 * each answer: a block that overlaps another, is not aligned or lies outside of the source's memory ends the use of the
 * allocator, and the report names the blocks.
 *
 * Licence: as Skep's, Apache-2.0.
 */
#ifndef SKEP_ALLOCATOR_H
#define SKEP_ALLOCATOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. */
#define SKEP_ALLOCATOR_ABI 1

/* Where memory comes from. Call these functions only within skep_allocator_malloc, _free and _trim, with `context` as their
 * first argument. Chunks begin at multiples of 512. Pages are those of page(): 4096 bytes, or more on a device. */
typedef struct skep_source {
    void *context;
    /* A chunk of `bytes`; returns its address, 0 if memory is refused. */
    uint64_t (*take)(void *context, uint64_t bytes);
    /* Gives a whole chunk back. On a device it may wait for queued work, as cudaFree does. */
    void (*give_back)(void *context, uint64_t address, uint64_t bytes);
    /* Addresses for `bytes` without memory behind them; 0 if there are none. */
    uint64_t (*reserve)(void *context, uint64_t bytes);
    /* Gives such addresses back, all of them, without memory behind any. */
    void (*release)(void *context, uint64_t address, uint64_t bytes);
    /* Puts memory behind whole reserved pages that have none; 1, or 0 if it is refused. */
    int (*commit)(void *context, uint64_t address, uint64_t bytes);
    /* Takes the memory of whole committed pages back. */
    void (*decommit)(void *context, uint64_t address, uint64_t bytes);
    /* Bytes of a page, a power of two. */
    uint64_t (*page)(void *context);
    /* Bytes that the source would still give; UINT64_MAX without a limit. */
    uint64_t (*available)(void *context);
    /* Waits for the work that is queued on the device. */
    void (*wait)(void *context);
    /* The time in nanoseconds, from any beginning. */
    uint64_t (*now)(void *context);
} skep_source;

/* What an allocator holds, in bytes. */
typedef struct skep_allocator_figures {
    /* What users asked for and have not freed. */
    uint64_t in_use;
    /* What these blocks take beyond that. */
    uint64_t padding;
    /* Chunks and committed pages from the source. */
    uint64_t reserved;
    /* The largest piece of free memory that a block could take. */
    uint64_t largest_free;
} skep_allocator_figures;

/* Makes an allocator; NULL if it cannot. `abi` is the version that Skep speaks: return NULL for one that you do not know.
 * `source` lives as long as the allocator. `options` is what follows the colon in `./libmine.so:name=value,...`, or "". */
void *skep_allocator_create(uint32_t abi, const skep_source *source, const char *options);

/* A block of `bytes` (from 1 to 2^62) at a multiple of `alignment` (a power of two), used in the order of `stream`. Returns its
 * address, 0 if there is no memory. */
uint64_t skep_allocator_malloc(void *self, uint64_t bytes, uint64_t alignment, uint64_t stream);

/* Frees the block at `address`. Returns the bytes that were asked for, 0 if no block in use begins there. */
uint64_t skep_allocator_free(void *self, uint64_t address);

/* Writes what it holds to `figures`. */
void skep_allocator_stats(const void *self, skep_allocator_figures *figures);

/* Ends the allocator. The source takes what it still holds. */
void skep_allocator_destroy(void *self);

/* May be missing: gives back to the source what no block needs. */
void skep_allocator_trim(void *self);

#ifdef __cplusplus
}
#endif

#endif
