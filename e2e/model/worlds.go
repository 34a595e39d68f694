package model

import (
	"fmt"

	"github.com/flarekv/flare/controller/core"
)

// Worlds lists the worlds that are explored, by name. Those that begin with "fast" take
// part in `make test`; all of them in `make check-model`.
func Worlds() []*Model {
	pair := func(name, doc string, b Budget) *Model {
		return &Model{Name: name, Doc: doc, Nodes: 2, Partitions: 1, Replicas: 2, Budget: b}
	}
	grown := func(name string, nodes, replicas int, doc string, b Budget) *Model {
		return &Model{Name: name, Doc: doc, Nodes: nodes, Partitions: 1, Replicas: replicas, Grows: true, Respec: toggle, Budget: b}
	}
	guarded := func(name, doc string, b Budget) *Model {
		m := pair(name, "one partition, two nodes: "+doc, b)
		m.Policy.MinUp = 600_000
		return m
	}
	list := []*Model{
		pair("fast-crash", "one partition, two nodes: a process dies", Budget{Crash: 1, Write: 1}),
		pair("fast-cut", "one partition, two nodes: one that the controller does not reach", Budget{Cut: 1, Write: 1}),
		pair("lag", "one partition, two nodes: they do not reach each other for a while, and one dies", Budget{Apart: 1, Crash: 1, Write: 1}),
		pair("fast-sever", "one partition, two nodes: they do not reach each other for a while, and a message comes late", Budget{Apart: 1, Late: 1, Write: 1}),
		pair("fast-handover", "one partition, two nodes: a handover whose answer is lost or whose message comes late", Budget{Handover: 1, LostReply: 1, Late: 1, Write: 1}),
		pair("fast-takeover", "one partition, two nodes: another controller leads, and does not reach a node", Budget{Takeover: 1, Cut: 1}),
		pair("handover-late", "one partition, two nodes: a handover that comes late, while the nodes do not reach each other", Budget{Handover: 1, Late: 1, Apart: 1, Write: 1}),
		pair("grants", "one partition, two nodes: they do not reach each other, twice, and a grant comes late", Budget{Apart: 2, Late: 1}),
		{Name: "rejoin", Doc: "one partition, two nodes: a replica comes back while its master dies, and a grant comes late",
			Nodes: 2, Partitions: 1, Replicas: 2, Rejoining: true, Budget: Budget{Crash: 1, Late: 1, Write: 1}},
		pair("slow", "one partition, two nodes: they do not reach each other, and the controller does not reach one", Budget{Apart: 1, Cut: 1}),
		pair("save", "one partition, two nodes: a process dies, and saving goes wrong", Budget{Crash: 1, Unsaved: 1, SavedUnknown: 1, LostReply: 1}),
		pair("terminate", "one partition, two nodes: a pod is deleted while another controller begins to lead", Budget{Terminate: 1, Takeover: 1}),
		{Name: "form", Doc: "one partition, two nodes: a cluster forms, and another controller leads meanwhile",
			Nodes: 2, Partitions: 1, Replicas: 2, Empty: true, Budget: Budget{Takeover: 1, Stray: 1}},
		{Name: "form-late", Doc: "one partition, two nodes: a cluster forms, a process dies, and a message comes late",
			Nodes: 2, Partitions: 1, Replicas: 2, Empty: true, Budget: Budget{Late: 1, Crash: 1, Apart: 1}},
		grown("fast-grow", 2, 1, "a second partition is added", Budget{Respec: 1, Write: 1}),
		grown("grow", 2, 1, "a second partition is added, and it is asked for no more; a node is out of reach", Budget{Respec: 2, Write: 1, Cut: 1}),
		grown("grow-crash", 2, 1, "a second partition is added, and a process dies", Budget{Respec: 1, Write: 2, Crash: 1}),
		grown("grow-takeover", 2, 1, "a second partition is added while another controller begins to lead", Budget{Respec: 1, Write: 1, Takeover: 1}),
		grown("grow-late", 2, 1, "a second partition is added, a report comes late, and saving goes wrong", Budget{Respec: 1, Write: 1, Late: 1, SavedUnknown: 1}),
		grown("grow-failover", 3, 2, "a second partition is added while the first one gets another master", Budget{Respec: 1, Write: 1, Handover: 1}),
		guarded("fast-breaker", "a node more than may be is lost: a process dies", Budget{Crash: 1, Write: 1}),
		guarded("pause", "an operator's pause, and a process dies meanwhile", Budget{Pause: 1, Crash: 1}),
		guarded("breaker", "a node more than may be is lost, an operator overrides the breaker, another controller leads", Budget{Cut: 1, Override: 1, Takeover: 1, Write: 1}),
		{Name: "zone", Doc: "one partition, three nodes: the loss of the zone of two holds the roles",
			Nodes: 3, Partitions: 1, Replicas: 3, Policy: core.FailoverPolicy{HoldZone: true}, Budget: Budget{Crash: 2}},
		limited(1_700_000, pair("1x2", "one partition, two nodes", Budget{Crash: 1, Cut: 1, Apart: 1, Takeover: 1, Unsaved: 1, SavedUnknown: 1, LostReply: 1, Late: 1, Write: 2})),
		limited(1_700_000, &Model{Name: "1x3", Doc: "one partition, three nodes",
			Nodes: 3, Partitions: 1, Replicas: 3,
			Budget: Budget{Crash: 1, Cut: 1, Takeover: 1, Write: 1}}),
		limited(1_700_000, &Model{Name: "2x2", Doc: "two partitions, two nodes each",
			Nodes: 4, Partitions: 2, Replicas: 2,
			Budget: Budget{Crash: 1, Takeover: 1, Write: 1}}),
	}
	for _, m := range list {
		if m.Limit == 0 {
			m.Limit = 600_000 // so that all of them take less than half an hour on two processors
		}
	}
	return list
}

// limited bounds how much of a world is looked at.
func limited(states uint64, m *Model) *Model {
	m.Limit = states
	return m
}

// toggle asks for two partitions instead of one, or the other way round.
func toggle(s *core.Spec) { s.Partitions = 3 - s.Partitions }

// Find returns the world with a name.
func Find(name string) (*Model, error) {
	for _, m := range Worlds() {
		if m.Name == name {
			return m, m.Init()
		}
	}
	return nil, fmt.Errorf("there is no world %q", name)
}
