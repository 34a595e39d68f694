package replication

import (
	"time"

	"github.com/flarekv/flare/agent/progress"
	"github.com/flarekv/flare/agent/replication/history"
)

// Phase is what a catch-up is doing.
type Phase uint8

// The phases, in the order in which they follow each other; each may be left out.
const (
	PhaseNone    Phase = iota // no catch-up is under way
	PhaseWaiting              // for the master to begin
	PhaseCopy                 // of files or records
	PhaseInstall              // of what was copied
	PhaseLog                  // write batches behind it
)

func (p Phase) String() string {
	return [...]string{"", "waiting", "copy", "install", "log"}[p]
}

// Progress is how far a catch-up that is under way has come. It is over when the
// replica has everything that the master has.
type Progress struct {
	Phase  Phase // what the numbers are of
	Tier   history.Tier
	Reason string // of the tier
	Since  time.Time

	BytesDone   uint64
	BytesTotal  uint64 // 0 when nobody knows; in PhaseLog estimated by the batches so far
	BatchesDone uint64 // in PhaseLog
	BatchesAll  uint64 // in PhaseLog; grows with the master's writes
	Records     uint64 // of a copy by dump

	Rate float64       // bytes a second
	ETA  time.Duration // until the phase is over; negative when there is no telling
}

// A catchUp measures one catch-up. It is told the time, and belongs to whoever
// holds the lock of what it is part of. The zero value is none.
type catchUp struct {
	p              Progress
	from           uint64 // index at which PhaseLog began
	bytes, batches progress.Meter
}

// begin starts to measure.
func (c *catchUp) begin(now time.Time, tier history.Tier, reason string) {
	*c = catchUp{p: Progress{Phase: PhaseWaiting, Tier: tier, Reason: reason, Since: now}}
}

func (c *catchUp) running() bool { return c.p.Phase != PhaseNone }

func (c *catchUp) enter(phase Phase) {
	if c.p.Phase == phase {
		return
	}
	p := Progress{Phase: phase, Tier: c.p.Tier, Reason: c.p.Reason, Since: c.p.Since}
	*c = catchUp{p: p, from: c.from}
}

// copied tells how much of a copy there is; total is 0 when nobody knows.
func (c *catchUp) copied(now time.Time, done, total, records uint64) {
	if !c.running() {
		return
	}
	c.enter(PhaseCopy)
	c.p.BytesDone, c.p.BytesTotal, c.p.Records = done, total, records
	c.bytes.Add(now, done)
}

// install tells that a copy is whole.
func (c *catchUp) install() {
	if c.running() {
		c.enter(PhaseInstall)
	}
}

// log tells that batches come from an index on, up to head so far. There may be
// none to come.
func (c *catchUp) log(now time.Time, from, head uint64) {
	if !c.running() {
		return
	}
	c.enter(PhaseLog)
	c.from = from
	c.bytes.Add(now, 0)
	c.batches.Add(now, 0)
	c.applied(now, from, head, 0)
}

// applied tells that the replica has the log up to an index, for which so many more
// bytes were needed, while its master's reaches to head. It ends the catch-up with
// the last batch there is.
func (c *catchUp) applied(now time.Time, index, head, bytes uint64) {
	if c.p.Phase != PhaseLog {
		return
	}
	if index >= head {
		c.end()
		return
	}
	c.p.BytesDone += bytes
	c.p.BatchesDone = index - min(c.from, index)
	c.p.BatchesAll = head - min(c.from, head)
	c.bytes.Add(now, c.p.BytesDone)
	c.batches.Add(now, c.p.BatchesDone)
}

// end tells that the replica has caught up, or that it was given up.
func (c *catchUp) end() { *c = catchUp{} }

// progress returns how far it is.
func (c *catchUp) progress(now time.Time) Progress {
	p := c.p
	p.ETA = -1
	if !c.running() {
		return p
	}
	p.Rate = c.bytes.Rate(now)
	left, rate := p.BytesTotal-min(p.BytesDone, p.BytesTotal), p.Rate
	switch {
	case p.Phase == PhaseLog:
		left, rate = p.BatchesAll-p.BatchesDone, c.batches.Rate(now)
		if p.BatchesDone > 0 {
			p.BytesTotal = p.BytesDone + uint64(float64(left)*float64(p.BytesDone)/float64(p.BatchesDone))
		}
	case p.BytesTotal == 0:
		return p
	}
	if eta, ok := progress.ETA(left, rate); ok {
		p.ETA = eta
	}
	return p
}
