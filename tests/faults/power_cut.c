/* What a disk has after a power cut: of the files below POWER_CUT_OF what was fsynced, copied to POWER_CUT_TO at each
   fsync. Preloaded into each process of a server (tests/faults/power_cut.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void keep(int file) {
    const char *of = getenv("POWER_CUT_OF"), *to = getenv("POWER_CUT_TO");
    char link[64], path[4096], kept[5000], copy[5100], content[1 << 16];
    if (!of || !to) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    /* The database in use and its log. A rollback journal is gone once the tables are made. */
    if (strncmp(path, of, strlen(of)) || !strstr(path, "db.sqlite3") || strstr(path, "-journal")) return;
    snprintf(kept, sizeof kept, "%s/%s", to, strrchr(path, '/') + 1);
    snprintf(copy, sizeof copy, "%s.%d", kept, getpid());
    int from = open(path, O_RDONLY), into = open(copy, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (ssize_t size; from >= 0 && into >= 0 && (size = read(from, content, sizeof content)) > 0;)
        if (write(into, content, size) != size) break;
    close(from);
    close(into);
    rename(copy, kept);
}

static int synced(const char *name, int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(file);
    if (result == 0) keep(file);
    return result;
}

int fsync(int file) { return synced("fsync", file); }
int fdatasync(int file) { return synced("fdatasync", file); }
