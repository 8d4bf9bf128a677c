"""Allocators in C, made into libraries."""

import os
import subprocess

from server import ROOT

# An allocator with one chunk, whose blocks lie one behind the other; BODY comes first in its malloc.
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
#include "skep_allocator.h"
struct state { const skep_source *source; uint64_t base, next, last, blocks, in_use; };
static uint64_t sizes[1 << 18];
void *skep_allocator_create(uint32_t abi, const skep_source *source, const char *options) {
    struct state *self = calloc(1, sizeof *self);
    (void)abi; (void)options;
    self->source = source;
    return self;
}
uint64_t skep_allocator_malloc(void *me, uint64_t bytes, uint64_t alignment, uint64_t stream) {
    struct state *self = me;
    uint64_t number = self->blocks;
    (void)alignment; (void)stream; (void)number;
    if (!self->base) self->base = self->source->take(self->source->context, 1 << 30);
    BODY
    uint64_t address = self->base + self->next;
    sizes[self->next / 4096] = bytes;
    self->last = self->next;
    self->next += (bytes + 4095) / 4096 * 4096;
    self->blocks++;
    self->in_use += bytes;
    return address;
}
uint64_t skep_allocator_free(void *me, uint64_t address) {
    struct state *self = me;
    uint64_t bytes = sizes[(address - self->base) / 4096];
    self->in_use -= bytes;
    return bytes;
}
void skep_allocator_stats(const void *me, skep_allocator_figures *figures) {
    const struct state *self = me;
    *figures = (skep_allocator_figures){ self->in_use, 0, self->base ? 1 << 30 : 0, 0 };
}
void skep_allocator_destroy(void *me) { free(me); }
"""

WRONG = {
    "right": "",
    "overlapping": "if (number == 5) self->next = self->last;",
    "crashing": "if (number == 5) *(volatile int *)0 = 1;",
    "exiting": "if (number == 5) exit(3);",
    "talking": 'if (number == 5) puts("hello from the library");',
}


def compiled(folder, name, source):
    """The library made of a text, or of a file."""
    library = folder / f"lib{name}.so"
    if isinstance(source, str):
        path = folder / f"{name}.c"
        path.write_text(source)
        source = path
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I", ROOT / "include", "-o", library, source]
    subprocess.run(command, check=True)
    return library


def wrong(folder, name):
    """A library that goes wrong in the way that its name says."""
    return compiled(folder, name, SOURCE.replace("BODY", WRONG[name]))


def example(folder):
    """The example in C of the documentation."""
    return compiled(folder, "whole", ROOT / "examples/allocator/whole.c")
