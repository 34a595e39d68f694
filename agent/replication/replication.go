// Package replication keeps copies of a partition's log on other nodes: it
// streams batches from a master to its replicas, picks the cheapest way in which
// a replica can catch up, and knows which writes every in-sync replica has.
//
// A replica connects to its master and upgrades the connection with a line of
// the text protocol (FollowRequest); frames follow in both directions:
//
//	replica                         master
//	HELLO (position, lineage)  ->
//	                           <-   START (tier, master's position), or ERROR
//	RESUME (interrupted copy)  ->   with tier checkpoint
//	                           <-   CHECKPOINT_BEGIN (the files)
//	HAVE (what is here)        ->   or ERROR
//	                           <-   FILE_BEGIN, FILE_DATA..., FILE_END, ..., CHECKPOINT_DONE
//	ALIVE ...                  ->   while it installs the copy
//	KEYS                       ->   with tier rewind, in turn until all
//	                           <-   VALUES...  keys of the diverged tail are told
//	                           <-   BATCH ...
//	ACK (position)             ->   what it has applied
//	                           <-   IN_SYNC (epoch, session)
//	                           <-   LEASE_ASK (epoch, token, time)
//	LEASE_ACK (epoch, token)   ->   no later epoch is begun here for that time
//	                           <-   HEARTBEAT (position, time)
//	                           <-   LACKING (what other nodes lack of the log)
//
// Both sides send something at least every interval that START names, and give
// up a connection that was silent for longer than the timeout that it names.
//
// What is decided is in Leader and in package history, which know no sockets
// and no clock; Source and Follower carry it out.
package replication

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// Errors that callers tell apart.
var (
	// ErrNotMaster means that this node does not lead the partition (any more).
	ErrNotMaster = errors.New("not the master")
	// ErrTimeout means that an in-sync replica did not acknowledge in time.
	ErrTimeout = errors.New("replication timeout")
	// ErrRefused means that the index will not accept a claim to be in sync, however
	// often it is repeated. FollowerConfig.InSync wraps it.
	ErrRefused = errors.New("in-sync claim refused")
)

// Error is a failure with a machine-readable reason.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// reasonOf returns the reason of an error, or the general one.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "connection_failed"
}

// Conn is a connection; net.Conn is one.
type Conn interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// patientReader reads from a connection as long as each read brings something
// within its patience.
type patientReader struct {
	conn     Conn
	patience time.Duration
}

func (r *patientReader) Read(p []byte) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(r.patience)); err != nil {
		return 0, err
	}
	return r.conn.Read(p)
}

// patientWriter writes to a connection as long as the other side takes each write
// within its patience, even if it gives signs of life meanwhile.
type patientWriter struct {
	conn     Conn
	patience time.Duration
}

func (w *patientWriter) Write(p []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.patience)); err != nil {
		return 0, err
	}
	n, err := w.conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = refuse(refusedSlow, "%d of %d bytes were taken within %v: %w", n, len(p), w.patience, err)
	}
	return n, err
}

// Log is what a master needs of its database.
type Log interface {
	Position() history.Position
	// Oldest returns the index of the oldest batch that is retained.
	Oldest() (uint64, error)
	Tail(after topology.LSN) (history.Tail, error)
	Snapshot() (history.Snapshot, error)
	// CommittedAt tells about when a batch was committed; zero if unknown.
	CommittedAt(index uint64) time.Time
	// LogBytes returns how many bytes of log lie behind the batch with the index.
	LogBytes(index uint64) (uint64, error)
	// KeepFor has the log kept for nodes that lack it from these batches on.
	KeepFor(lacking []uint64)
	// Values returns what the first of the keys have, at least one and no more than
	// make up limit bytes, and a position that none of it is newer than.
	Values(keys []history.Key, limit int) ([]history.Value, topology.LSN, error)
}

// Store is what a replica needs of its database.
type Store interface {
	Position() history.Position
	// Apply appends batches. The position it returns without an error is durable, as
	// far as the database is told to wait for the disk; with no batches it is the
	// present one, which it may have to make durable.
	Apply(ctx context.Context, batches ...[]byte) (topology.LSN, error)
	// Incoming returns the directory for a copy, with what an interrupted one has left
	// there, and that one's name, "" for none.
	Incoming() (dir, name string, err error)
	NameIncoming(name string) error
	DropIncoming() error
	Replace(dir string) error
	// Space returns how many bytes are free, and how many of them must stay so.
	Space() (free, reserve int64, err error)
	// KeepFor has the log kept for nodes that lack it from these batches on.
	KeepFor(lacking []uint64)
	// Diverged reads what the log changed behind a fork.
	Diverged(ctx context.Context, fork topology.LSN, limits history.RewindLimits) (history.Divergence, error)
	// Rewind undoes that, all at once, with values none of which is newer than restored.
	Rewind(ctx context.Context, d history.Divergence, values []history.Value, restored topology.LSN) error
}
