package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// The rewind: a replica whose log has a tail that the master never had asks for
// the values of every key that the tail changed, goes back to the fork with them
// in one step, and follows the log from there. The values are those of a position
// S at the master, which lies behind the fork, so on the way from the fork to S
// those keys may be newer than the replica's position tells; at S all is as it is
// at the master's S, because whatever wrote to such a key in between is applied
// again, in order.
//
// Nobody may take the replica for a copy of the log before it has reached S.
//
//   - It becomes in sync only by a grant, for which it must have what the leader
//     calls joinAt. The leader knows head >= S when it hears that the replica
//     receives the log (Source.streams follows the last VALUES), and joinAt is a
//     head at or after that. The same holds for a later connection to this master:
//     Choose lets the replica continue by the log only if S is in the master's
//     log, so again head >= S.
//   - To another master it tells S with its position. If that master's log does not
//     have S (it was lost with the former master), Choose answers with a copy.
//   - Should it be made master all the same, because nobody else is left, it begins
//     a history of its own, see storage.DB.BeginEpoch.

const (
	// keysSize is about how many bytes of keys are asked for at a time.
	keysSize = 64 << 10
	// valuesSize is about how many bytes of values are sent at a time.
	valuesSize = 256 << 10
	// rewindPatience is how long a replica may take to read its own tail.
	rewindPatience = time.Minute
)

// keys asks for values. The next ones are asked for when all these have arrived.
type keys struct {
	last bool
	keys []history.Key
}

// values answers the next ones of the keys that were asked for, in order.
type values struct {
	at     topology.LSN // no value is newer
	values []history.Value
}

func (k keys) encode() []byte {
	b := []byte{0}
	if k.last {
		b[0] = 1
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(k.keys)))
	for _, key := range k.keys {
		b = appendString(append(b, key.Family), key.Key)
	}
	return b
}

func (v values) encode() []byte {
	b := appendLSN(nil, v.at)
	b = binary.BigEndian.AppendUint32(b, uint32(len(v.values)))
	for _, value := range v.values {
		if !value.Found {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		b = binary.BigEndian.AppendUint32(b, uint32(len(value.Data)))
		b = append(b, value.Data...)
	}
	return b
}

func decodeKeys(b []byte) (keys, error) {
	d := decoder{rest: b}
	k := keys{last: d.bool()}
	for range d.count(5) {
		k.keys = append(k.keys, history.Key{Family: d.u8(), Key: d.string()})
	}
	return k, d.end(frameKeys)
}

// decodeValues returns values that point into b.
func decodeValues(b []byte) (values, error) {
	d := decoder{rest: b}
	v := values{at: d.lsn()}
	for range d.count(1) {
		value := history.Value{Found: d.bool()}
		if value.Found {
			value.Data = d.take(int(d.u32()))
		}
		v.values = append(v.values, value)
	}
	return v, d.end(frameValues)
}

// bool reads a byte that must be 0 or 1.
func (d *decoder) bool() bool {
	b := d.u8()
	d.bad = d.bad || b > 1
	return b == 1
}

// rewind answers what the follower asks for until it has all.
func (c *sender) rewind(f *feed, log *slog.Logger) error {
	var total, bytes uint64
	told := func(n uint64) {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		f.bytesDone = n
		f.up.copied(time.Now(), bytes, 0, 0)
	}
	defer told(0)
	began := time.Now()
	for {
		payload, err := c.await(f, frameKeys, rewindPatience)
		if err != nil {
			return err
		}
		ask, err := decodeKeys(payload)
		if err != nil {
			return err
		}
		for rest := ask.keys; len(rest) > 0; {
			found, at, err := c.s.log.Values(rest, valuesSize)
			if err != nil {
				return err
			}
			payload := values{at, found}.encode()
			if err := c.send(frameValues, payload); err != nil {
				return err
			}
			rest = rest[len(found):]
			total += uint64(len(found))
			bytes += uint64(len(payload))
			told(bytes)
			if err := c.limited(c.s.cfg.CopyBandwidth, len(payload)); err != nil {
				return err
			}
		}
		if err := c.w.Flush(); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if ask.last {
			log.Info("values for a rewind sent", "keys", total, "bytes", bytes, "took", time.Since(began))
			return nil
		}
	}
}

// rewind undoes the tail that the master does not have.
func (s *session) rewind(st start) error {
	limits := s.cfg.RewindLimits
	if limits == (history.RewindLimits{}) {
		limits = history.DefaultRewindLimits
	}
	d, err := s.db.Diverged(s.ctx, st.fork, limits)
	if err != nil {
		return s.giveUpRewind(err)
	}
	got, restored, err := s.fetch(d, limits)
	if err != nil {
		return err
	}
	var bytes uint64
	for _, v := range got {
		bytes += uint64(len(v.Data))
	}
	if err := s.db.Rewind(s.ctx, d, got, restored); err != nil {
		return &Error{"rewind_failed", err}
	}
	s.update(func(fs *FollowerStatus) {
		fs.Rewinds++
		fs.RewoundKeys += uint64(len(got))
		fs.RewoundBytes += bytes
		fs.BytesDone = 0
	})
	s.log.Warn("what the master never had was undone", "reason", st.reason, "lsn", d.End, "fork", d.Fork,
		"batches", d.Batches, "keys", len(got), "bytes", bytes, "restored", restored)
	s.measure(func(c *catchUp, now time.Time) { c.log(now, d.Fork.Index, s.status.MasterLSN.Index) })
	s.setApplied(d.Fork)
	return nil
}

// fetch asks the master for the values of all keys of the tail.
func (s *session) fetch(d history.Divergence, limits history.RewindLimits) ([]history.Value, topology.LSN, error) {
	var got []history.Value
	var restored topology.LSN
	size := d.Bytes
	for last := false; !last; {
		rest := d.Keys[len(got):]
		n := 0
		for asked := 0; n < len(rest) && asked < keysSize; n++ {
			asked += len(rest[n].Key)
		}
		last = n == len(rest)
		if err := s.send(frameKeys, keys{last, rest[:n]}.encode()); err != nil {
			return nil, restored, fmt.Errorf("rewind: %w", err)
		}
		for want := len(got) + n; len(got) < want; {
			t, payload, err := readFrame(s.r)
			if err != nil {
				return nil, restored, fmt.Errorf("rewind: %w", err)
			}
			if handled, err := s.common(t, payload); err != nil {
				return nil, restored, err
			} else if handled {
				continue
			}
			if t != frameValues {
				return nil, restored, &Error{"protocol_error", fmt.Errorf("rewind: %w: unexpected %v", errBadFrame, t)}
			}
			v, err := decodeValues(payload)
			if err == nil && (len(v.values) == 0 || len(got)+len(v.values) > want) {
				err = fmt.Errorf("%w: %d values for %d keys", errBadFrame, len(v.values), want-len(got))
			}
			if err != nil {
				return nil, restored, &Error{"protocol_error", fmt.Errorf("rewind: %w", err)}
			}
			for i := range v.values {
				size += int64(len(v.values[i].Data))
			}
			if size > limits.Bytes {
				return nil, restored, s.giveUpRewind(fmt.Errorf("%w: more than %d bytes", history.ErrTooLarge, limits.Bytes))
			}
			got, restored = append(got, v.values...), v.at
			s.update(func(fs *FollowerStatus) {
				fs.BytesDone = uint64(size - d.Bytes)
				s.up.copied(time.Now(), fs.BytesDone, 0, 0)
			})
		}
	}
	return got, restored, nil
}

// giveUpRewind makes the next attempt ask for a copy, unless it is only this one
// that ends.
func (s *session) giveUpRewind(err error) error {
	reason := "rewind_failed"
	switch {
	case s.ctx.Err() != nil, errors.Is(err, history.ErrClosed):
		return err
	case errors.Is(err, history.ErrPurged):
		reason = "rewind_log_purged"
	case errors.Is(err, history.ErrFlushed):
		reason = "rewind_flush_all"
	case errors.Is(err, history.ErrTooLarge):
		reason = "rewind_too_large"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noRewind = reason
	s.status.RewindsGivenUp++
	return &Error{reason, fmt.Errorf("rewind: %w", err)}
}

// allowRewind is for a new log, of which nothing is known against it.
func (f *Follower) allowRewind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noRewind = ""
}

// refusedRewind returns why this node cannot rewind, "" if it can.
func (f *Follower) refusedRewind() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.noRewind
}
