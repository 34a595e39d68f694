package target

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/flarekv/flare/proto/topology"
)

// A peer is a node that says what a test wants.
type peer struct {
	addr string

	mu      sync.Mutex
	answers map[string]string // by the first word of the request, or all of it
	asked   []string
}

func startPeer(t *testing.T) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{addr: l.Addr().String(), answers: map[string]string{}}
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				line = strings.TrimRight(line, "\r\n")
				word, _, _ := strings.Cut(line, " ")
				p.mu.Lock()
				p.asked = append(p.asked, line)
				answer, ok := p.answers[line]
				if !ok {
					answer = p.answers[word]
				}
				p.mu.Unlock()
				io.WriteString(conn, answer)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		handlers.Wait()
	})
	return p
}

func (p *peer) says(request, answer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[request] = answer
}

// stats tells of a node as stats nodes does.
func stats(key string, role topology.Role, state topology.State, partition int) string {
	return fmt.Sprintf("STAT %[1]s:role %[2]v\r\nSTAT %[1]s:state %[3]v\r\nSTAT %[1]s:partition %[4]d\r\nSTAT %[1]s:balance 1\r\nSTAT %[1]s:thread_type 16\r\n",
		key, role, state, partition)
}

func TestLook(t *testing.T) {
	p := startPeer(t)
	whole := stats("b:1", topology.Master, topology.Active, 1) + stats("a:1", topology.Master, topology.Active, 0) + stats("c:1", topology.Slave, topology.Active, 0)
	for _, tt := range []struct {
		name, nodes, own string
		reason           string // empty if it can be used
		destination      string
	}{
		{"whole", whole + "END\r\n", "STAT curr_items 3\r\nEND\r\n", "", ""},
		{"replicates itself", whole + "END\r\n", "STAT cluster_replication_destination blue:1\r\nEND\r\n", "", "blue:1"},
		{"another server", "ERROR\r\n", "", ReasonIncompatible, ""},
		{"memcached", "END\r\n", "", ReasonIncompatible, ""},
		{"no partitions", stats("a:1", topology.Proxy, topology.Active, -1) + "END\r\n", "", ReasonIncompatible, ""},
		{"a partition without master", stats("a:1", topology.Master, topology.Active, 0) + stats("b:1", topology.Master, topology.Down, 1) + "END\r\n", "", ReasonIncompatible, ""},
		{"nonsense", "STAT a:1:role king\r\nEND\r\n", "", ReasonIncompatible, ""},
		{"it dies", "STAT a:1:role master\r\n", "", ReasonUnreachable, ""},
		{"it dies later", whole + "END\r\n", "STAT curr", ReasonUnreachable, ""},
		{"a line without end", "STAT " + strings.Repeat("x", 2*maxLine), "", ReasonUnreachable, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.says("stats nodes", tt.nodes)
			p.says("stats", tt.own)
			c, err := Look(t.Context(), p.addr)
			if tt.reason != "" {
				if err == nil || ReasonOf(err) != tt.reason {
					t.Errorf("%+v, %v: want it refused as %s", c, err, tt.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(c.Keys(), " "); got != "a:1 b:1 c:1" || strings.Join(c.masters(), " ") != "a:1 b:1" || c.Destination != tt.destination {
				t.Errorf("nodes %s, masters %v, destination %q", got, c.masters(), c.Destination)
			}
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Look(t.Context(), l.Addr().String()); ReasonOf(err) != ReasonUnreachable {
		t.Errorf("nobody there: %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Look(over, p.addr); err == nil {
		t.Error("a look that is over found something")
	}
}

func TestJudge(t *testing.T) {
	one := func(n uint64) topology.Digest { return topology.Digest{Records: n, Bytes: 10 * n, Checksum: 7 * n} }
	source, target := make([]topology.Digest, 2*buckets), make([]topology.Digest, 2*buckets)
	equal := make([]bool, 2*buckets)
	source[0], target[0] = one(1), one(1)
	source[1], target[1] = one(2), one(3) // being written
	source[buckets], target[buckets] = one(4), one(4)
	out := judge(source, target, equal, 2)
	if out.Equal || !out.Exact || out.Differing != 1 || out.Source != one(7) || out.Target != one(8) {
		t.Errorf("%+v", out)
	}
	if p := out.Partitions; p[0].Equal || p[0].Differing != 1 || p[0].Buckets != buckets || !p[1].Equal || p[1].Source != one(4) {
		t.Errorf("%+v", p)
	}
	// In the next round what differed is the same, and something else is being written.
	target[1], target[0] = one(2), one(9)
	if out = judge(source, target, equal, 2); !out.Equal || out.Differing != 0 || out.Partitions[0].Differing != 0 {
		t.Errorf("each bucket was equal once: %+v", out)
	}
}

// TestCompare lets scripted nodes sum up their records.
func TestCompare(t *testing.T) {
	source, target := startPeer(t), startPeer(t)
	target.says("stats nodes", stats(target.addr, topology.Master, topology.Active, 0)+"END\r\n")
	target.says("stats", "STAT curr_items 5\r\nEND\r\n")
	source.says("stats", "STAT curr_items 4\r\nEND\r\n")
	meta := topology.DefaultMeta()
	compare := func() (Outcome, error) {
		return Compare(t.Context(), Comparison{Source: []string{source.addr}, Target: target.addr, Meta: meta, Partitions: 2})
	}
	records := "PROGRESS 1\r\nDIGEST 0 1 2 20 3\r\nDIGEST 1 63 1 9 4\r\nEND\r\n"
	source.says("digest", records)
	target.says("digest", records)
	out, err := compare()
	if err != nil || !out.Equal || !out.Exact || out.Source.Records != 3 || out.Target != out.Source || len(out.Partitions) != 2 {
		t.Errorf("the same: %+v, %v", out, err)
	}
	if want := fmt.Sprintf("digest %s %d %d %d 2 %d", meta.Hash, meta.Hint, meta.Virtual, meta.PartitionSize, buckets); len(source.asked) != 1 || source.asked[0] != want {
		t.Errorf("the node was asked %q, want %q once", source.asked, want)
	}
	target.says("digest", "DIGEST 0 1 2 20 3\r\nEND\r\n")
	if out, err = compare(); err != nil || out.Equal || out.Differing != 1 || out.Partitions[1].Differing != 1 || out.Target.Records != 2 {
		t.Errorf("a record is missing: %+v, %v", out, err)
	}
	if n := len(source.asked); n != 1+DefaultRounds {
		t.Errorf("%d rounds, want %d", n-1, DefaultRounds)
	}
	for name, answer := range map[string]string{
		"another partition": "DIGEST 2 0 1 1 1\r\nEND\r\n", "another bucket": "DIGEST 0 64 1 1 1\r\nEND\r\n", "no number": "DIGEST 0 0 x 1 1\r\nEND\r\n",
		"a refusal": "SERVER_ERROR map_changing\r\n",
	} {
		target.says("digest", answer)
		if out, err = compare(); ReasonOf(err) != ReasonDigestFailed || err == nil {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
	target.says("digest", "DIGEST 0 0 1")
	if _, err = compare(); err == nil || ReasonOf(err) != ReasonUnreachable {
		t.Errorf("it dies: %v", err)
	}
	// Who knows no digests can say how many records there are.
	target.says("digest", "ERROR\r\n")
	if out, err = compare(); err != nil || out.Exact || out.Equal || out.Source.Records != 4 || out.Target.Records != 5 || !strings.Contains(out.Why, target.addr) {
		t.Errorf("counted: %+v, %v", out, err)
	}
	source.says("stats", "STAT curr_items 5\r\nEND\r\n")
	if out, err = compare(); err != nil || out.Exact || !out.Equal {
		t.Errorf("counted: %+v, %v", out, err)
	}
	source.says("stats", "STAT curr_items many\r\nEND\r\n")
	if _, err = compare(); err == nil || ReasonOf(err) != ReasonIncompatible {
		t.Errorf("counted: %v", err)
	}
}

func TestReasonOf(t *testing.T) {
	if got := ReasonOf(fmt.Errorf("wrapped: %w", failure(ReasonIncompatible, "x"))); got != ReasonIncompatible {
		t.Errorf("got %s", got)
	}
	if got := ReasonOf(errors.New("x")); got != ReasonUnreachable {
		t.Errorf("got %s", got)
	}
}
