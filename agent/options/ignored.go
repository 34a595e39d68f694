package options

import (
	"slices"
	"strconv"
)

// ReasonNoEffect: the option is one of flare 1.x that has no meaning here.
const ReasonNoEffect = "no_effect"

// ignored are the options of flare 1.x that have no meaning here. They are
// accepted, so that an old file works as it is, and named wherever they are given.
var ignored = []Spec{
	{Key: "daemonize", Type: "boolean", Doc: "flared stays in the foreground; whoever starts it keeps it"},
	{Key: "log-facility", Type: "text", Doc: "the log goes to the standard error output; see log-level"},
	{Key: "thread-pool-size", Type: "integer", Doc: "there is no pool of threads"},
	{Key: "stack-size", Type: "integer", Doc: "stacks grow as needed"},
	{Key: "mutex-slot", Type: "integer", Doc: "locks are striped by the storage"},
	{Key: "noreply-window-limit", Type: "integer", Doc: "writes to other nodes are always acknowledged"},
	{Key: "storage-type", Type: "text", Doc: "the storage is RocksDB"},
	{Key: "storage-ap", Type: "integer", Doc: "Tokyo Cabinet"},
	{Key: "storage-fp", Type: "integer", Doc: "Tokyo Cabinet"},
	{Key: "storage-bucket-size", Type: "integer", Doc: "Tokyo Cabinet"},
	{Key: "storage-compress", Type: "text", Doc: "data are compressed with LZ4"},
	{Key: "storage-large", Type: "boolean", Doc: "any size is supported"},
	{Key: "storage-lmemb", Type: "integer", Doc: "Tokyo Cabinet"},
	{Key: "storage-nmemb", Type: "integer", Doc: "Tokyo Cabinet"},
	{Key: "storage-dfunit", Type: "integer", Doc: "RocksDB compacts by itself"},
}

// Ignored returns the options that are accepted without effect.
func Ignored() []Spec { return slices.Clone(ignored) }

func ignoredSpec(key string) *Spec {
	i := slices.IndexFunc(ignored, func(s Spec) bool { return s.Key == key })
	if i < 0 {
		return nil
	}
	return &ignored[i]
}

// WithoutEffect returns the names among settings that are accepted without effect.
func WithoutEffect(settings []Setting) []string {
	var keys []string
	for _, s := range settings {
		if ignoredSpec(s.Key) != nil {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// check looks at a value only as far as a slip of the pen would show.
func (s *Spec) check(value string) *refusal {
	switch s.Type {
	case "boolean":
		if !slices.Contains([]string{"", "true", "false", "1", "0"}, value) {
			return refuse(ReasonInvalidValue, "is %q; it must be true or false", shorten(value))
		}
	case "integer":
		if value == "" {
			return refuse(ReasonMissingValue, "has no value; it must be a whole number")
		}
		if _, err := strconv.ParseInt(value, 10, 64); err != nil {
			return refuse(ReasonInvalidValue, "is %q; it must be a whole number", shorten(value))
		}
	}
	return nil
}
