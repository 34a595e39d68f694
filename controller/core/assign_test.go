package core

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flarekv/flare/proto/topology"
)

// nodesIn makes one candidate for each letter, in the zone of that letter.
func nodesIn(zones string) []candidate {
	var list []candidate
	for i, z := range strings.ReplaceAll(zones, " ", "") {
		c := candidate{key: fmt.Sprintf("n%02d:1", i), zone: string(z), ordinal: i, held: -1}
		if z == '-' {
			c.zone = ""
		}
		list = append(list, c)
	}
	return list
}

func TestLayout(t *testing.T) {
	lsn := func(e, i uint64) topology.LSN { return topology.LSN{Epoch: e, Index: i} }
	for _, tt := range []struct {
		name                 string
		partitions, replicas int
		nodes                []candidate
		want                 string
	}{
		{"two zones, dealt in turn", 2, 2, nodesIn("xyxy"), "0,1 3,2"},
		{"two zones, in blocks", 2, 2, nodesIn("xxyy"), "0,2 3,1"},
		{"zones not known", 2, 2, nodesIn("----"), "0,2 1,3"},
		{"three zones", 3, 3, nodesIn("xyzxyzxyz"), "0,1,2 4,3,5 8,6,7"},
		{"more nodes than needed: a zone each", 1, 2, nodesIn("xxxxy"), "0,4"},
		{"one zone", 2, 2, nodesIn("xxxx"), "0,2 1,3"},
		{"one node for each only", 2, 3, nodesIn("xy"), "0 1"},
		{"too few", 3, 1, nodesIn("xy"), ""},
		{
			"data decides", 2, 2, []candidate{
				{key: "n00:1", zone: "x", ordinal: 0, held: 1, lsn: lsn(1, 5)},
				{key: "n01:1", zone: "y", ordinal: 1, held: -1},
				{key: "n02:1", zone: "x", ordinal: 2, held: 1, lsn: lsn(2, 1)},
				{key: "n03:1", zone: "y", ordinal: 3, held: 0, lsn: lsn(9, 9)},
			}, "3,1 2,0",
		},
		{
			"data without a zone to choose", 1, 3, []candidate{
				{key: "n00:1", zone: "x", ordinal: 0, held: 0, lsn: lsn(1, 5)},
				{key: "n01:1", zone: "x", ordinal: 1, held: -1},
				{key: "n02:1", zone: "y", ordinal: 2, held: -1},
			}, "0,2,1",
		},
		{
			"who acts as master comes before a later report of a replica", 1, 2, []candidate{
				{key: "n00:1", ordinal: 0, held: 0, lsn: lsn(1, 8)},
				{key: "n01:1", ordinal: 1, held: 0, lsn: lsn(1, 7), claim: claimMaster, heard: 5},
			}, "1,0",
		},
		{
			"of two who act as master the one with the later map", 1, 2, []candidate{
				{key: "n00:1", ordinal: 0, held: 0, lsn: lsn(1, 9), claim: claimMaster, heard: 5},
				{key: "n01:1", ordinal: 1, held: 0, lsn: lsn(2, 7), claim: claimMaster, heard: 6},
			}, "1,0",
		},
		{
			"who was being filled comes last", 1, 2, []candidate{
				{key: "n00:1", ordinal: 0, held: 0, lsn: lsn(1, 9), claim: claimFilling},
				{key: "n01:1", ordinal: 1, held: 0, lsn: lsn(1, 7)},
			}, "1,0",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, keys := range layout(tt.partitions, tt.replicas, tt.nodes) {
				for i := range keys {
					keys[i] = strings.TrimLeft(strings.TrimSuffix(keys[i], ":1"), "n0")
					if keys[i] == "" {
						keys[i] = "0"
					}
				}
				got = append(got, strings.Join(keys, ","))
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("layout = %q, want %q", g, tt.want)
			}
		})
	}
}

// TestLayoutIsAsGoodAsCanBe checks every layout against bounds that no layout
// can beat.
func TestLayoutIsAsGoodAsCanBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		partitions := rapid.IntRange(1, 5).Draw(t, "partitions")
		replicas := rapid.IntRange(1, 4).Draw(t, "replicas")
		zones := rapid.StringMatching(fmt.Sprintf("[x-z]{%d,%d}", partitions, partitions*replicas+2)).Draw(t, "zones")
		nodes := nodesIn(zones)
		plan := layout(partitions, replicas, nodes)
		if plan == nil {
			t.Fatalf("%d nodes do not suffice for %d masters?", len(nodes), partitions)
		}
		zone := map[string]string{}
		count := map[string]int{}
		for _, c := range nodes {
			zone[c.key] = c.zone
			count[c.zone]++
		}
		used := map[string]bool{}
		perZone := map[string]int{}
		total := 0
		for p, keys := range plan {
			if len(keys) == 0 || len(keys) > replicas {
				t.Fatalf("partition %d has %d nodes", p, len(keys))
			}
			total += len(keys)
			in := map[string]int{}
			for _, k := range keys {
				if used[k] {
					t.Fatalf("%s is used twice", k)
				}
				used[k] = true
				in[zone[k]]++
			}
			for z, n := range in {
				// Two nodes of a partition share a zone only where the zone's nodes are more
				// than the partitions.
				if n > 1 && count[z] <= partitions {
					t.Fatalf("partition %d has %d nodes in zone %s, which has only %d: %v of %s", p, n, z, count[z], plan, zones)
				}
			}
			perZone[zone[keys[0]]]++
		}
		if want := min(len(nodes), partitions*replicas); total != want {
			t.Fatalf("%d nodes have a duty, want %d", total, want)
		}
		most := 0
		for _, n := range perZone {
			most = max(most, n)
		}
		if best := fewestMasters(plan, zone); most > best {
			t.Fatalf("a zone has %d masters, %d is possible: %v of %s", most, best, plan, zones)
		}
	})
}

// fewestMasters tries all choices of masters for the smallest number that the
// zone with most must have.
func fewestMasters(plan [][]string, zone map[string]string) int {
	best := len(plan)
	count := map[string]int{}
	var try func(p, most int)
	try = func(p, most int) {
		if p == len(plan) {
			best = min(best, most)
			return
		}
		for _, k := range plan[p] {
			z := zone[k]
			count[z]++
			try(p+1, max(most, count[z]))
			count[z]--
		}
	}
	try(0, 0)
	return best
}
