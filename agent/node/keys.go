package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

// maxKeysBytes bounds what one prefix of keys may find, in any one partition and
// altogether: the answer is complete or an error, so all of it is held.
const maxKeysBytes = 64 << 20

// keyCost is what it takes to hold a key.
func keyCost(key []byte) int { return len(key) + 48 }

// errTooManyKeys means that maxKeysBytes is not enough.
var errTooManyKeys = errors.New("too_many_keys: ask for a longer prefix or with a lower limit")

// keys answers keys: for each prefix, the first keys in their order that begin
// with it and have not expired, as many as the limit says.
//
// The original hashes the prefix, as if it were a key, and so finds what happens
// to be in one partition. Here every partition is asked. Whoever is asked by
// another node answers for itself only. If a partition cannot be asked, the answer
// is an error: a list that lacks a part cannot be told from a whole one.
func (c *conn) keys(req *text.Request) {
	at := len(c.out)
	ctx, cancel := context.WithTimeout(c.s.ctx, max(c.s.failoverWait, c.s.requestTimeout()))
	defer cancel()
	for _, prefix := range req.Keys {
		c.s.counters.cmdGet.Add(1)
		var found [][]byte
		var err error
		if to := c.s.remote.Load(); to != nil {
			found, err = c.s.remoteKeys(to, prefix, req.Limit)
		} else if req.Proxied {
			found, err = c.s.ownKeys(ctx, prefix, req.Limit, -1)
		} else {
			found, err = c.s.allKeys(ctx, prefix, req.Limit)
		}
		if err != nil {
			c.s.limited.warn(c.s.logger, "keys not answered", "reason", "keys_incomplete", "error", err)
			c.out = text.AppendServerError(c.out[:at], err.Error())
			return
		}
		for _, key := range found {
			c.out = text.AppendKey(c.out, key)
		}
	}
	c.out = append(c.out, text.ReplyEnd...)
}

// allKeys asks every partition.
func (s *Server) allKeys(ctx context.Context, prefix []byte, limit int) ([][]byte, error) {
	type answer struct {
		keys [][]byte
		err  error
	}
	partitions := 0
	if t := s.maps.table(); t != nil {
		partitions = len(t.parts)
	}
	answers := make([]answer, partitions)
	var asked sync.WaitGroup
	for p := range answers {
		asked.Go(func() {
			a := &answers[p]
			a.keys, a.err = s.partitionKeys(ctx, p, prefix, limit)
		})
	}
	asked.Wait()
	var found [][]byte
	size := 0
	for p, a := range answers {
		if errors.Is(a.err, errTooManyKeys) {
			return nil, a.err
		}
		if a.err != nil {
			return nil, fmt.Errorf("keys_incomplete: partition %d: %w", p, a.err)
		}
		for _, key := range a.keys {
			size += keyCost(key)
		}
		found = append(found, a.keys...)
	}
	if size > maxKeysBytes {
		return nil, errTooManyKeys
	}
	slices.SortFunc(found, bytes.Compare)
	return found[:min(limit, len(found))], nil
}

// partitionKeys asks this node or others for the keys of one partition, until one
// answers or the time is over.
func (s *Server) partitionKeys(ctx context.Context, p int, prefix []byte, limit int) ([][]byte, error) {
	var avoid, useless []string // not reached; reached, but do not answer
	last := errors.New("no node answers for it")
	for {
		wake := s.changed.wait()
		t := s.maps.table()
		switch {
		case p >= len(t.parts):
			return nil, errors.New("it does not exist any more")
		case ctx.Err() != nil:
			return nil, last
		}
		switch r := t.readFrom(p, nil, slices.Concat(avoid, useless), rand.Uint32()); r.action {
		case actLocal:
			keys, err := s.ownKeys(ctx, prefix, limit, p)
			if err == nil || errors.Is(err, errTooManyKeys) {
				return keys, err
			}
			last = err
			avoid = append(avoid, s.self)
		case actForward:
			keys, err := s.forwardKeys(ctx, t, p, r.to, prefix, limit)
			if err == nil || errors.Is(err, errTooManyKeys) {
				return keys, err
			}
			last = fmt.Errorf("%s: %w", r.to, err)
			if errors.Is(err, errNotSent) || errors.Is(err, errInFlight) {
				avoid = append(avoid, r.to)
			} else {
				useless = append(useless, r.to)
			}
		default:
			if len(avoid) == 0 && len(useless) > 0 {
				return nil, last // waiting does not make them answer
			}
			select {
			case <-wake:
			case <-time.After(retryPause):
			case <-ctx.Done():
				return nil, last
			}
			avoid = nil
		}
	}
}

// forwardKeys asks another node for the keys of a partition. It answers for all it
// has, in which a node of the original may include what belongs elsewhere.
func (s *Server) forwardKeys(ctx context.Context, t *table, p int, node string, prefix []byte, limit int) ([][]byte, error) {
	req := &text.Request{Command: text.CmdKeys, Keys: [][]byte{prefix}, Limit: limit}
	deadline, _ := ctx.Deadline()
	c := newCall(shapeOf(req.Command), 1, deadline)
	c.request = text.AppendRequest(c.request, req, []string{s.self})
	s.peers.submit(node, 0, c)
	select {
	case <-c.done:
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	switch {
	case c.err != nil:
		return nil, c.err
	case len(c.line) > 0:
		return nil, errors.New(string(c.line))
	}
	answered := len(c.keys)
	keys := slices.DeleteFunc(c.keys, func(key []byte) bool {
		q, ok := t.partition(key)
		return !ok || q != p
	})
	if foreign := answered - len(keys); foreign > 0 && (answered >= limit || len(keys) == 0) {
		return nil, fmt.Errorf("%d of the %d keys of its answer belong to other partitions", foreign, answered)
	}
	return keys, nil
}

// ownKeys looks keys up in the own database, of partition p, or with -1 of
// whatever this node answers for.
func (s *Server) ownKeys(ctx context.Context, prefix []byte, limit, p int) ([][]byte, error) {
	t := s.maps.table()
	if p < 0 && (t == nil || !slices.ContainsFunc(t.parts, func(p part) bool { return p.serves })) {
		return nil, errors.New("not_serving: this node answers for no partition")
	}
	var found [][]byte
	size := 0
	scan := s.db.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true})
	for len(found) < limit && scan.Next(ctx) {
		if expired(scan.Record(), s.clock().Unix()) {
			continue
		}
		q, ok := t.partition(scan.Key())
		if !ok || p >= 0 && q != p || !t.parts[q].serves {
			continue
		}
		if size += keyCost(scan.Key()); size > maxKeysBytes {
			return nil, errTooManyKeys
		}
		found = append(found, bytes.Clone(scan.Key()))
	}
	return found, scan.Err()
}
