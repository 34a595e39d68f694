package target

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/proto/topology"
)

const (
	// DefaultRounds is how often records that differ are looked at.
	DefaultRounds = 3
	// buckets is into how many parts the records of a partition are dealt: what is
	// written meanwhile makes only its own part differ.
	buckets = 64
	// progressEvery is the distance of reports.
	progressEvery = time.Second
)

// Comparison says what is to be compared.
type Comparison struct {
	Source     []string // masters of this cluster, one a partition, host:port
	Target     string   // a node of the other one
	Meta       topology.Meta
	Partitions int // of this cluster; the other's records are sorted by its mapping too
	Rounds     int
	// Progress is called about once a second; its error ends the comparison.
	Progress func(Progress) error
}

// Progress is how far it is.
type Progress struct {
	Round  int    // from 1
	Source uint64 // records looked at in this round
	Target uint64
}

// Outcome is what was found.
type Outcome struct {
	Equal      bool
	Exact      bool // records were compared, and not only counted
	Source     topology.Digest
	Target     topology.Digest
	Partitions []PartitionOutcome // none unless exact
	Differing  int                // partitions
	Why        string             // not exact: which node cannot, in words
}

// PartitionOutcome is one partition.
type PartitionOutcome struct {
	Source, Target topology.Digest // of the last round
	Equal          bool
	Differing      int // buckets that were equal in no round
	Buckets        int
}

// Compare compares two clusters. Every record of a partition is dealt into one of its
// buckets; a bucket that was equal in one round is equal, since what both clusters
// have is the same there but for what is on its way.
//
// Where a node of the target knows no digests, the numbers of records are compared
// that both clusters' nodes count, dead ones and those of other partitions included.
func Compare(ctx context.Context, c Comparison) (Outcome, error) {
	if c.Rounds <= 0 {
		c.Rounds = DefaultRounds
	}
	if c.Progress == nil {
		c.Progress = func(Progress) error { return nil }
	}
	there, err := Look(ctx, c.Target)
	if err != nil {
		return Outcome{}, err
	}
	equal := make([]bool, c.Partitions*buckets)
	var out Outcome
	for round := 1; round <= c.Rounds; round++ {
		source, target, err := c.round(ctx, round, there.masters())
		switch {
		case err != nil && ReasonOf(err) == ReasonDigestUnavailable:
			return c.count(ctx, there.masters(), err)
		case err != nil:
			return Outcome{}, err
		}
		out = judge(source, target, equal, c.Partitions)
		if out.Equal {
			break
		}
	}
	return out, nil
}

// judge compares the sums of a round, and keeps in equal which buckets ever were.
func judge(source, target []topology.Digest, equal []bool, partitions int) Outcome {
	out := Outcome{Equal: true, Exact: true, Partitions: make([]PartitionOutcome, partitions)}
	for i := range source {
		p := &out.Partitions[i/buckets]
		p.Buckets++
		p.Source, p.Target = p.Source.Plus(source[i]), p.Target.Plus(target[i])
		if equal[i] = equal[i] || source[i] == target[i]; !equal[i] {
			p.Differing++
		}
	}
	for i := range out.Partitions {
		p := &out.Partitions[i]
		out.Source, out.Target = out.Source.Plus(p.Source), out.Target.Plus(p.Target)
		if p.Equal = p.Differing == 0; !p.Equal {
			out.Equal = false
			out.Differing++
		}
	}
	return out
}

// round sums up the records of all masters of both clusters, at the same time.
func (c Comparison) round(ctx context.Context, number int, there []string) (source, target []topology.Digest, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type side struct {
		masters []string
		done    []atomic.Uint64
		sums    []topology.Digest
		mu      sync.Mutex
	}
	sides := []*side{{masters: sortedUnique(c.Source)}, {masters: sortedUnique(there)}}
	var work sync.WaitGroup
	for _, s := range sides {
		s.done = make([]atomic.Uint64, len(s.masters))
		s.sums = make([]topology.Digest, c.Partitions*buckets)
		for i, addr := range s.masters {
			work.Go(func() {
				sums, err := digest(ctx, addr, c.Meta, c.Partitions, &s.done[i])
				if err != nil {
					cancel(err)
					return
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				for i, d := range sums {
					s.sums[i] = s.sums[i].Plus(d)
				}
			})
		}
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		work.Wait()
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-finished:
			return sides[0].sums, sides[1].sums, context.Cause(ctx)
		case <-tick.C:
			p := Progress{Round: number}
			for i := range sides[0].done {
				p.Source += sides[0].done[i].Load()
			}
			for i := range sides[1].done {
				p.Target += sides[1].done[i].Load()
			}
			if err := c.Progress(p); err != nil {
				cancel(err)
			}
		}
	}
}

// digest asks a node for the sums over its records.
func digest(ctx context.Context, addr string, m topology.Meta, partitions int, done *atomic.Uint64) ([]topology.Digest, error) {
	sums := make([]topology.Digest, partitions*buckets)
	request := fmt.Sprintf("digest %s %d %d %d %d %d", m.Hash, m.Hint, m.Virtual, m.PartitionSize, partitions, buckets)
	err := ask(ctx, addr, request, func(line string) error {
		f := strings.Fields(line)
		switch {
		case line == "ERROR":
			return failure(ReasonDigestUnavailable, "%s does not know digests", addr)
		case len(f) == 2 && f[0] == "PROGRESS":
			n, _ := strconv.ParseUint(f[1], 10, 64)
			done.Store(n)
			return nil
		case len(f) == 6 && f[0] == "DIGEST":
			var n [5]uint64
			for i := range n {
				v, err := strconv.ParseUint(f[i+1], 10, 64)
				if err != nil {
					return failure(ReasonDigestFailed, "%s answers %q", addr, line)
				}
				n[i] = v
			}
			if n[0] >= uint64(partitions) || n[1] >= buckets {
				return failure(ReasonDigestFailed, "%s answers %q, and was asked for %d partitions with %d buckets", addr, line, partitions, buckets)
			}
			i := int(n[0])*buckets + int(n[1])
			sums[i] = sums[i].Plus(topology.Digest{Records: n[2], Bytes: n[3], Checksum: n[4]})
			return nil
		}
		return failure(ReasonDigestFailed, "%s: %s", addr, strings.TrimPrefix(line, "SERVER_ERROR "))
	})
	var total uint64
	for _, d := range sums {
		total += d.Records
	}
	done.Store(max(done.Load(), total))
	return sums, err
}

// count compares how many records both clusters' nodes say that they have.
func (c Comparison) count(ctx context.Context, there []string, why error) (Outcome, error) {
	out := Outcome{Why: why.Error()}
	for _, side := range []struct {
		masters []string
		sum     *topology.Digest
	}{{c.Source, &out.Source}, {there, &out.Target}} {
		for _, addr := range sortedUnique(side.masters) {
			stats, err := askStats(ctx, addr, "stats")
			if err != nil {
				return Outcome{}, err
			}
			for _, s := range stats {
				if s.name == "curr_items" {
					n, err := strconv.ParseUint(s.value, 10, 64)
					if err != nil {
						return Outcome{}, failure(ReasonIncompatible, "%s: curr_items %q", addr, s.value)
					}
					side.sum.Records += n
				}
			}
		}
	}
	out.Equal = out.Source.Records == out.Target.Records
	return out, nil
}
