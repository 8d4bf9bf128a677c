/* A CUDA driver without a device, for tests: addresses are numbers, memory is counted, and every rule of the calls that
 * Skep uses is checked. `fake_state` returns what is still held. */
#include <stddef.h>
#include <stdint.h>

#define MOST 4096
#define PAGE ((size_t)2 << 20)
#define TOTAL ((size_t)1 << 38)

static struct { uint64_t address; size_t bytes; } chunks[MOST], ranges[MOST], mapped[MOST];
static uint64_t handles[MOST];
static uint64_t next = (uint64_t)1 << 40, next_handle = 1;
static size_t used;
static int contexts, faults, waits;

struct location { int type, id; };
struct properties { int type, handle_types; struct location location; void *metadata; unsigned char flags[8]; };
struct access { struct location location; int flags; };

static int slot(void *table, size_t size, uint64_t key) {
    for (int i = 0; i < MOST; i++)
        if (*(uint64_t *)((char *)table + i * size) == key) return i;
    return -1;
}

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 10; return ordinal == 0 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &contexts; contexts++; return device == 10 ? 0 : 101; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return device == 10 ? 0 : 101; }
int cuCtxSetCurrent(void *context) { return context == &contexts ? 0 : 201; }
int cuCtxSynchronize(void) { waits++; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = TOTAL - used; *total = TOTAL; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 101 ? "invalid device ordinal" : NULL; return 0; }

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    int i = slot(chunks, sizeof *chunks, 0);
    if (bytes > TOTAL - used || i < 0) return 2;
    chunks[i].address = *address = next;
    chunks[i].bytes = bytes;
    next += bytes + PAGE;
    used += bytes;
    return 0;
}

int cuMemFree_v2(uint64_t address) {
    int i = slot(chunks, sizeof *chunks, address);
    if (i < 0) return ++faults, 1;
    used -= chunks[i].bytes;
    chunks[i].address = 0;
    return 0;
}

int cuMemAddressReserve(uint64_t *address, size_t bytes, size_t alignment, uint64_t at, uint64_t flags) {
    int i = slot(ranges, sizeof *ranges, 0);
    if (bytes % PAGE || alignment || at || flags || i < 0) return ++faults, 1;
    next = (next + PAGE) / PAGE * PAGE;
    ranges[i].address = *address = next;
    ranges[i].bytes = bytes;
    next += bytes;
    return 0;
}

int cuMemAddressFree(uint64_t address, size_t bytes) {
    int i = slot(ranges, sizeof *ranges, address);
    if (i < 0 || ranges[i].bytes != bytes) return ++faults, 1;
    for (int k = 0; k < MOST; k++)
        if (mapped[k].address >= address && mapped[k].address < address + bytes) return ++faults, 1;
    ranges[i].address = 0;
    return 0;
}

int cuMemGetAllocationGranularity(size_t *bytes, const struct properties *properties, int option) {
    *bytes = PAGE;
    return properties->type == 1 && properties->location.type == 1 && properties->location.id == 10 && option == 0 ? 0 : 1;
}

int cuMemCreate(uint64_t *handle, size_t bytes, const struct properties *properties, uint64_t flags) {
    int i = slot(handles, sizeof *handles, 0);
    if (bytes != PAGE || properties->type != 1 || flags || i < 0) return ++faults, 1;
    if (bytes > TOTAL - used) return 2;
    handles[i] = *handle = next_handle++;
    used += bytes;
    return 0;
}

int cuMemRelease(uint64_t handle) {
    int i = slot(handles, sizeof *handles, handle);
    if (i < 0) return ++faults, 1;
    handles[i] = 0;
    used -= PAGE;
    return 0;
}

int cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags) {
    int i = slot(mapped, sizeof *mapped, 0);
    if (address % PAGE || bytes != PAGE || offset || flags || i < 0 || slot(handles, sizeof *handles, handle) < 0
        || slot(mapped, sizeof *mapped, address) >= 0) return ++faults, 1;
    mapped[i].address = address;
    mapped[i].bytes = bytes;
    return 0;
}

int cuMemUnmap(uint64_t address, size_t bytes) {
    int i = slot(mapped, sizeof *mapped, address);
    if (i < 0 || mapped[i].bytes != bytes) return ++faults, 1;
    mapped[i].address = 0;
    return 0;
}

int cuMemSetAccess(uint64_t address, size_t bytes, const struct access *access, size_t count) {
    int i = slot(mapped, sizeof *mapped, address);
    return i < 0 || bytes != PAGE || count != 1 || access->flags != 3 || access->location.id != 10 ? (++faults, 1) : 0;
}

/* Bytes that are used, contexts, waits and broken rules. */
void fake_state(uint64_t *state) {
    state[0] = used;
    state[1] = contexts;
    state[2] = waits;
    state[3] = faults;
}
