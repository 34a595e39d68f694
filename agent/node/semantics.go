package node

import (
	"math"
	"slices"
	"strconv"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

// A verb is a command that may change one record.
type verb uint8

const (
	verbSet verb = iota
	verbAdd
	verbReplace
	verbAppend
	verbPrepend
	verbCas
	verbIncr
	verbDecr
	verbDelete
	verbTouch
	verbGat
)

// A mutation is one request to change one record, as parsed.
type mutation struct {
	verb    verb
	flags   uint32
	exptime int64  // as sent: 0, relative seconds or absolute; see text.Expiry
	version uint64 // 0 when the request carries none
	delta   uint64 // incr and decr
	data    []byte
	limit   int64 // largest value in bytes that append and prepend may grow to
	copied  bool  // from the node that executed it, which gave it its version
}

// A verdict is the answer to a mutation.
type verdict uint8

const (
	verdictStored verdict = iota
	verdictNotStored
	verdictExists
	verdictNotFound
	verdictDeleted
	verdictTouched
	verdictNumber   // outcome.number
	verdictValue    // outcome.record
	verdictTooLarge // append or prepend beyond the limit
)

// An outcome is what a mutation does to the record and what it answers.
type outcome struct {
	change  storage.Change
	verdict verdict
	number  uint64
	record  storage.Record
}

// expired tells whether a record is past its time.
func expired(r storage.Record, now int64) bool {
	return r.Expire > 0 && r.Expire <= now
}

// decide is the whole of flare's record semantics: from what is known of a key
// and a request it derives the change and the answer. The change may refer to
// the value in e and to m.data; what the outcome answers with refers to neither.
func decide(e storage.Entry, m *mutation, now int64) outcome {
	alive := e.Found && !expired(e.Record, now)
	// A deferred delete: the key counts as taken although it cannot be read.
	window := !alive && e.HasTombstone && e.Tombstone.Until > now

	switch m.verb {
	case verbDelete:
		return decideDelete(e, m, alive, now)
	case verbIncr, verbDecr:
		return decideCount(e, m, alive)
	case verbTouch, verbGat:
		if !alive {
			return outcome{verdict: verdictNotFound}
		}
		r := e.Record
		r.Expire = text.Expiry(m.exptime, now)
		o := outcome{verdict: verdictTouched}
		// What changes nothing is not written: two clusters that send each other
		// their writes would otherwise never stop.
		if r.Expire != e.Record.Expire {
			o.change = storage.Change{Op: storage.Touch, Record: r}
		}
		if m.verb == verbGat {
			o.verdict, o.record = verdictValue, r
			o.record.Value = slices.Clone(r.Value)
		}
		return o
	case verbAdd:
		if alive || window {
			return outcome{verdict: verdictNotStored}
		}
	case verbReplace, verbAppend, verbPrepend:
		if !alive {
			return outcome{verdict: verdictNotStored}
		}
	case verbCas:
		if !alive && !window {
			return outcome{verdict: verdictNotFound}
		}
		stored := e.Record.Version
		if !alive {
			stored = e.Tombstone.Version
		}
		if m.version != stored {
			return outcome{verdict: verdictExists}
		}
		return put(storage.Record{
			Flags:   m.flags,
			Expire:  text.Expiry(m.exptime, now),
			Version: stored + 1,
			Value:   m.data,
		})
	}

	r := storage.Record{Flags: m.flags, Expire: text.Expiry(m.exptime, now), Version: m.version, Value: m.data}
	if m.version == 0 {
		r.Version = lastVersion(e) + 1
	} else if alive && m.version <= e.Record.Version || m.copied && m.version <= newestVersion(e, now) {
		return outcome{verdict: verdictNotStored}
	}
	if m.verb == verbAppend || m.verb == verbPrepend {
		if int64(len(e.Record.Value))+int64(len(m.data)) > m.limit {
			return outcome{verdict: verdictTooLarge}
		}
		r.Flags, r.Expire = e.Record.Flags, e.Record.Expire
		first, second := e.Record.Value, m.data
		if m.verb == verbPrepend {
			first, second = second, first
		}
		r.Value = make([]byte, 0, len(first)+len(second))
		r.Value = append(append(r.Value, first...), second...)
	}
	return put(r)
}

func put(r storage.Record) outcome {
	return outcome{change: storage.Change{Op: storage.Put, Record: r}, verdict: verdictStored}
}

// lastVersion is the version that the next write counts on from, so that
// versions do not start again after an expiry or a delete.
func lastVersion(e storage.Entry) uint64 {
	var v uint64
	if e.Found {
		v = e.Record.Version
	}
	if e.HasTombstone {
		v = max(v, e.Tombstone.Version)
	}
	return v
}

// tombstoneTerm is how long, in seconds, a tombstone stands against a record that
// another node sends. What is late is late by less: a C++ node repeats a request
// for 40 minutes at most. And a C++ node forgets its tombstones when it restarts
// and counts from 1 again: one that stood for ever would keep its new records out.
const tombstoneTerm = 60 * 60

// newestVersion returns the version that a record from another node must exceed.
func newestVersion(e storage.Entry, now int64) uint64 {
	if e.HasTombstone && e.Tombstone.Until < now-tombstoneTerm {
		e.HasTombstone = false
	}
	return lastVersion(e)
}

// decideDump decides on a record from another node's dump: it is stored if it is
// newer than what is known of the key, be that expired or deleted. A record
// without a version, from a node that sends none, always is.
func decideDump(e storage.Entry, r storage.Record, now int64) storage.Change {
	switch {
	case r.Version == 0:
		r.Version = lastVersion(e) + 1
	case r.Version <= newestVersion(e, now):
		return storage.Change{}
	}
	return storage.Change{Op: storage.Put, Record: r}
}

func decideDelete(e storage.Entry, m *mutation, alive bool, now int64) outcome {
	until := text.Expiry(m.exptime, now)
	if until == 0 {
		until = now
	}
	if !e.Found {
		o := outcome{verdict: verdictNotFound}
		news := m.version > e.Tombstone.Version || until > max(e.Tombstone.Until, now)
		if m.version > 0 && m.version >= lastVersion(e) && news {
			o.change = storage.Change{Op: storage.Delete, Tombstone: storage.Tombstone{Version: m.version, Until: until}}
		}
		return o
	}
	if m.version > 0 && m.version < e.Record.Version {
		return outcome{verdict: verdictNotFound}
	}
	o := outcome{
		change: storage.Change{
			Op:        storage.Delete,
			Tombstone: storage.Tombstone{Version: max(m.version, e.Record.Version), Until: until},
		},
		verdict: verdictDeleted,
	}
	if !alive {
		o.verdict = verdictNotFound
	}
	return o
}

func decideCount(e storage.Entry, m *mutation, alive bool) outcome {
	if !alive {
		return outcome{verdict: verdictNotFound}
	}
	n := leadingNumber(e.Record.Value)
	if m.verb == verbIncr {
		if n > math.MaxUint64-m.delta {
			n = math.MaxUint64
		} else {
			n += m.delta
		}
	} else {
		n -= min(n, m.delta)
	}
	r := e.Record
	r.Version++
	r.Value = strconv.AppendUint(nil, n, 10)
	o := put(r)
	o.verdict, o.number = verdictNumber, n
	return o
}

// leadingNumber reads the digits a value begins with. Anything that is no
// number, or more than 64 bit, counts as 0.
func leadingNumber(value []byte) uint64 {
	var n uint64
	for _, c := range value {
		if c < '0' || c > '9' {
			break
		}
		d := uint64(c - '0')
		if n > (math.MaxUint64-d)/10 {
			return 0
		}
		n = n*10 + d
	}
	return n
}
