package options

import (
	"net"
	"strconv"
)

// ReasonConflict: two options are given that exclude each other.
const ReasonConflict = "conflicting_options"

// The index servers are a list, or, as in older files, one name with a port.
const (
	keyIndexServers = "index-servers"
	keyIndexName    = "index-server-name"
)

// bothIndexes says what is wrong with giving both forms.
const bothIndexes = "excludes " + keyIndexServers + "; remove one of them"

// Indexes returns the index servers, whichever way they were given, in the
// order in which they are tried.
func (o Options) Indexes() []string {
	if o.IndexServerName != "" {
		return []string{net.JoinHostPort(o.IndexServerName, strconv.Itoa(o.IndexServerPort))}
	}
	return o.IndexServers
}

// oneIndex lets the form of the index servers that was given last, in the source
// that given tells about, replace the other form. A source that gives both is wrong.
func (o *Options) oneIndex(given func(key string) bool) (conflict bool) {
	list, name := given(keyIndexServers), given(keyIndexName)
	switch {
	case list && name:
		return true
	case list:
		o.IndexServerName = ""
	case name:
		o.IndexServers = nil
	}
	return false
}

// otherIndex returns the option that a form of the index servers excludes.
func otherIndex(key string) string {
	switch key {
	case keyIndexServers:
		return keyIndexName
	case keyIndexName:
		return keyIndexServers
	}
	return ""
}
