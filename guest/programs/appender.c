// Writes records until it is killed, and says on its output how many write(2) has returned for: appender DIRECTORY.
// not compared: it does not end (tests/guest/test_durability.py)
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD 4096

static void must(const char *what, long result, long wanted)
{
	if (result != wanted) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static uint64_t record[RECORD / 8];
	int appended, placed, renamed;

	if (argc < 2 || chdir(argv[1]) < 0)
		return 2;
	appended = open("appended", O_CREAT | O_WRONLY | O_APPEND, 0600);
	placed = open("placed", O_CREAT | O_RDWR, 0600);
	if (appended < 0 || placed < 0)
		return 3;
	for (uint64_t n = 1;; n++) {
		char name[32];

		for (unsigned i = 0; i < RECORD / 8; i++)
			record[i] = n;
		must("write", write(appended, record, RECORD), RECORD);
		must("pwrite", pwrite(placed, record, RECORD, (off_t)(n % 64 * RECORD)), RECORD);
		renamed = open("new", O_CREAT | O_WRONLY | O_TRUNC, 0600);
		must("write", write(renamed, record, 8), 8);
		close(renamed);
		snprintf(name, sizeof name, "record%lu", (unsigned long)(n % 8));
		must("rename", rename("new", name), 0);
		must("say", write(1, &n, sizeof n), sizeof n);
	}
}
