#include "tuning.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <unordered_map>

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>

namespace {

using rocksdb::ColumnFamilyHandle;
using rocksdb::ColumnFamilyOptions;
using rocksdb::ConfigOptions;
using rocksdb::DB;
using rocksdb::DBOptions;
using rocksdb::Status;

using Map = std::unordered_map<std::string, std::string>;

// The structs of the C interface, each of which begins with the object it stands for.
DB* database(void* db) { return *static_cast<DB**>(db); }
ColumnFamilyHandle* columns(void* family) { return *static_cast<ColumnFamilyHandle**>(family); }

Map pairs(int n, char** names, char** values) {
  Map m;
  for (int i = 0; i < n; i++) m[names[i]] = values[i];
  return m;
}

// guarded returns what a status, or an exception, says; NULL for success.
template <typename F>
char* guarded(F f) {
  try {
    Status s = f();
    return s.ok() ? nullptr : strdup(s.ToString().c_str());
  } catch (const std::exception& e) {
    return strdup(e.what());
  }
}

}  // namespace

char* flare_options(void* db, void* family) {
  std::string text;
  char* wrong = guarded([&] {
    ConfigOptions config;
    config.delimiter = "\n";
    if (!family) return rocksdb::GetStringFromDBOptions(config, database(db)->GetDBOptions(), &text);
    rocksdb::Options o = database(db)->GetOptions(columns(family));
    Status s = rocksdb::GetStringFromColumnFamilyOptions(config, o, &text);
    std::string format;
    if (s.ok()) s = o.table_factory->GetOptionString(config, &format);
    text += "\n" + format;
    auto table = o.table_factory->GetOptions<rocksdb::BlockBasedTableOptions>();
    if (table && table->filter_policy) text += "\nfilter_policy=" + table->filter_policy->GetId();
    return s;
  });
  if (wrong) {
    free(wrong);
    text.clear();
  }
  return strdup(text.c_str());
}

char* flare_set_options(void* db, void* family, int n, char** names, char** values) {
  return guarded([&] {
    Map m = pairs(n, names, values);
    return family ? database(db)->SetOptions(columns(family), m) : database(db)->SetDBOptions(m);
  });
}

char* flare_check_options(void* db, void* family, int live, int n, char** names, char** values) {
  return guarded([&] {
    Map m = pairs(n, names, values);
    ConfigOptions config;
    config.mutable_options_only = live;
    if (family) {
      ColumnFamilyOptions checked;
      return rocksdb::GetColumnFamilyOptionsFromMap(config, database(db)->GetOptions(columns(family)), m, &checked);
    }
    DBOptions checked;
    return rocksdb::GetDBOptionsFromMap(config, database(db)->GetDBOptions(), m, &checked);
  });
}
