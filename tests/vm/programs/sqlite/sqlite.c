/* SQLite on a database file: runs the statements of a file, in small reads, and prints the rows. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "sqlite3-binding.h"

static int row(void *unused, int count, char **values, char **names) {
    for (int i = 0; i < count; i++) printf("%s%s", i ? "|" : "", values[i] ? values[i] : "NULL");
    printf("\n");
    return 0;
}

/* The one system call that WASI lacks and SQLite makes all the same, for a journal beside a database. */
static int fchmod_nothing(int file, int mode) { return 0; }

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    sqlite3_initialize();
    sqlite3_vfs *vfs = sqlite3_vfs_find(0);
    vfs->xSetSystemCall(vfs, "fchmod", (sqlite3_syscall_ptr)fchmod_nothing);
    sqlite3 *db;
    int batch = open(argv[2], O_RDONLY);
    if (batch < 0 || sqlite3_open(argv[1], &db)) return 3;
    static char statement[65536], piece[300];
    size_t length = 0;
    for (ssize_t got; (got = read(batch, piece, sizeof piece)) > 0;)
        for (ssize_t i = 0; i < got; i++) {
            statement[length++] = piece[i];
            statement[length] = 0;
            if (piece[i] != '\n' || !sqlite3_complete(statement)) continue;
            char *why = 0;
            if (sqlite3_exec(db, statement, row, 0, &why)) {
                fprintf(stderr, "%s: %s\n", statement, why);
                return 4;
            }
            length = 0;
        }
    fprintf(stderr, "%d changes\n", sqlite3_total_changes(db));
    return sqlite3_close(db) == SQLITE_OK ? 0 : 5;
}
