// What RocksDB's C interface lacks: options of a running database. A database and a
// column family are the pointers of that interface. Texts that are returned are freed
// by the caller.

#ifndef FLARE_TUNING_H
#define FLARE_TUNING_H

#ifdef __cplusplus
extern "C" {
#endif

// flare_options returns the options in force as lines of name=value: those of the
// database, or, with a column family, those of that and of its table files. NULL when
// memory is short.
char* flare_options(void* db, void* family);

// flare_set_options changes options of the database, or of a column family: all or
// none. It returns NULL, or what is wrong.
char* flare_set_options(void* db, void* family, int n, char** names, char** values);

// flare_check_options returns what flare_set_options would, and changes nothing. With
// live 0 it looks at what a start takes instead.
char* flare_check_options(void* db, void* family, int live, int n, char** names, char** values);

#ifdef __cplusplus
}
#endif

#endif
