package model

import (
	"reflect"
	"slices"
	"time"
	"unsafe"
)

// Epoch is the time of every world that was unpacked, in milliseconds. All times that
// matter are within a few minutes of the present, so none becomes negative.
const Epoch = 10_000_000

// Quantum is by how much a short tick moves the time. Two of them are more than a
// lease lasts, one is more than an agent or a replica may be silent; in between there
// is nothing that the core or the nodes would tell apart.
const Quantum = 3_500

// Long is by how much a long tick moves the time: more than anything waits for.
const Long = 400_000

// A clock tells how a field that holds a time is packed: which times are one and the
// same for everybody who looks at them.
type clock struct {
	kind clockKind
	// limit is the age, in milliseconds, from which on nobody tells the time from an
	// earlier one. With kind young it is also the age up to which nobody tells it from
	// the present: how long that is is not explored, only that it is over some day.
	limit int64
}

type clockKind int

const (
	exact    clockKind = iota + 1 // not a time, or one that is kept as it is
	ignored                       // nobody decides by it
	past                          // a time gone by; 0 for never
	young                         // the same, with two values: not long ago, or long ago
	deadline                      // a time to come; one gone by is as good as 0
	pastNano                      // as past, in nanoseconds
	counted                       // a number, of which all from limit on are one
)

// clocks are the fields that hold a time, and those that look like one. A field of
// type int64 or time.Time that is not in here is refused: who adds one to the core
// has to say here from what age on it does not matter any more.
var clocks = map[string]clock{
	"core.State.Now":          {past, 0},
	"core.State.Started":      {young, 10_000},
	"core.State.PersistRetry": {deadline, 0},
	"core.State.FirstHello":   {past, 60_000},
	"core.Channel.Retry":      {deadline, 0},
	"core.Lease.Until":        {deadline, 0},
	"core.Lease.Agent":        {exact, 0},
	"core.Lease.Token":        {pastNano, 7_000},
	"core.Seen.AgentAt":       {past, 3_001},
	"core.Seen.PingAt":        {ignored, 0},
	"core.Seen.OKSince":       {young, 30_000},
	"core.Seen.AddedAt":       {past, 10_000},
	"core.Seen.PingFails":     {counted, 3},
	"core.Seen.Refused":       {counted, 3},
	"core.Seen.AddTries":      {counted, 3},
	"core.AgentReport.Now":    {ignored, 0},

	"core.AgentReport.AgentStarted":     {exact, 0},
	"core.AgentReport.LeaseToken":       {pastNano, 7_000},
	"core.AgentReport.ConfigGeneration": {exact, 0},

	"core.Spec.Generation":      {exact, 0},
	"core.Durable.Generation":   {exact, 0},
	"core.ConfigKey.Generation": {exact, 0},
	"core.Status.Generation":    {exact, 0},

	"replication.Leader.since":     {ignored, 0}, // only of Shortage
	"replication.member.heard":     {past, replicaTimeout.Milliseconds()},
	"replication.member.rest":      {deadline, 0},
	"replication.member.promised":  {pastNano, 7_000},
	"replication.leaseRound.asked": {pastNano, 7_000},
	"replication.leaseRound.token": {pastNano, 7_000},
	"replication.leaseRound.until": {deadline, 0},
	"replication.leaseRound.ttl":   {exact, 0},
	"model.World.Now":              {past, 0},
	"model.Hand.Paused":            {past, 7_000},
	"core.Command.Paused":          {pastNano, 7_000},
	"model.Node.Opened":            {past, 7_000},
	"model.Node.Refused":           {past, 1},
	"model.Node.Asked":             {past, 1},
	"model.Node.Until":             {deadline, 0},
	"model.Promise.Until":          {deadline, 0},
	"model.Pending.Since":          {past, replicaTimeout.Milliseconds()},
	"model.Mail.Now":               {ignored, 0},
	"core.GrantLease.TTL":          {exact, 0},
	"core.GrantLease.Token":        {pastNano, 7_000},

	"core.Replication.Since": {past, 60_000},
	"core.Comparison.At":     {exact, 0}, // no world compares clusters
	"core.ClusterReport.Lag": {exact, 0},

	"core.Order.Until":        {past, 30_000},
	"core.State.SwitchSince":  {past, 2_000},
	"core.State.SwitchAfter":  {deadline, 0},
	"core.State.SettledSince": {young, 60_000},
	"core.OrphanPurge.Delay":  {exact, 0},
	"core.Orphans.Since":      {past, 0}, // no world purges orphans

	"core.FailoverPolicy.Grace": {exact, 0},
	"core.Breaker.Since":        {past, 0},
	"core.Breaker.Calm":         {past, 300_000},
	"core.Breaker.Settle":       {exact, 0},
	"core.Breaker.Closed":       {young, 300_000},
	"core.Pause.At":             {past, 0},
	"core.Override.Until":       {deadline, 0},
}

// canonical returns the age by which a time is packed; ok is false for none.
func (c clock) canonical(t, now int64) (age int64, ok bool) {
	if t == 0 {
		return 0, false
	}
	age = now - t
	switch c.kind {
	case deadline:
		return age, age < 0
	case young:
		if age < c.limit {
			return 0, true
		}
		return c.limit, true
	default:
		return min(age, c.limit), true
	}
}

// clockField returns the codec of a field that is in the table of clocks.
func (c *compiler) clockField(t reflect.Type, f reflect.StructField) (node, bool) {
	name := t.String() + "." + f.Name
	k, ok := clocks[name]
	looks := f.Type == timeType || f.Type == reflect.TypeFor[int64]() || f.Type == reflect.TypeFor[time.Duration]()
	switch {
	case !ok && looks:
		if err := (unknownClock{name}); !slices.Contains(c.errs, error(err)) {
			c.errs = append(c.errs, err)
		}
		return node{}, false
	case !ok || k.kind == exact:
		return node{}, false
	case k.kind == ignored:
		return node{codec{func(*packing, unsafe.Pointer) {}, func(*unpacking, unsafe.Pointer) {}},
			func(unsafe.Pointer) bool { return true }}, true
	}
	// get and set work in milliseconds, with ages in between.
	get := func(p unsafe.Pointer) int64 { return *(*int64)(p) }
	set := func(p unsafe.Pointer, v int64) { *(*int64)(p) = v }
	switch {
	case k.kind == counted:
		return node{codec{
			func(w *packing, p unsafe.Pointer) { w.varint(min(*(*int64)(p), k.limit)) },
			func(r *unpacking, p unsafe.Pointer) { *(*int64)(p) = r.varint() },
		}, func(p unsafe.Pointer) bool { return *(*int64)(p) == 0 }}, true
	case f.Type == timeType:
		get = func(p unsafe.Pointer) int64 {
			if t := (*time.Time)(p); !t.IsZero() {
				return t.UnixMilli()
			}
			return 0
		}
		set = func(p unsafe.Pointer, v int64) { *(*time.Time)(p) = time.UnixMilli(v).UTC() }
	case k.kind == pastNano:
		get = func(p unsafe.Pointer) int64 { return int64(*(*uint64)(p) / 1e6) }
		set = func(p unsafe.Pointer, v int64) { *(*uint64)(p) = uint64(v) * 1e6 }
	}
	return node{codec{
		func(w *packing, p unsafe.Pointer) {
			age, ok := k.canonical(get(p), w.now)
			if !ok {
				w.b = append(w.b, 0)
				return
			}
			w.b = append(w.b, 1)
			w.varint(age)
		},
		func(r *unpacking, p unsafe.Pointer) {
			if r.uvarint() != 0 {
				set(p, Epoch-r.varint())
			}
		},
	}, func(unsafe.Pointer) bool { return false }}, true // a time gone by may be as good as none
}

// unknownClock is a field that may hold a time, and nobody has said how it counts.
type unknownClock struct{ field string }

func (e unknownClock) Error() string {
	return e.field + " may hold a time: say in clocks (e2e/model/clocks.go) from what age on it does not matter any more, or that it is none (exact)"
}
