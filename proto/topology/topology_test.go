package topology

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestLSN(t *testing.T) {
	ordered := []LSN{{}, {0, 1}, {1, 0}, {1, 7}, {1, 8}, {2, 0}, {math.MaxUint64, math.MaxUint64}}
	for i, a := range ordered {
		for j, b := range ordered {
			if got, want := a.Less(b), i < j; got != want {
				t.Errorf("%v.Less(%v) = %v", a, b, got)
			}
		}
		back, err := ParseLSN(a.String())
		if err != nil || back != a {
			t.Errorf("ParseLSN(%q) = %v, %v", a, back, err)
		}
		if a.IsZero() != (i == 0) {
			t.Errorf("%v.IsZero() = %v", a, a.IsZero())
		}
	}
	for _, s := range []string{"", "/", "1", "1/", "/1", "1/2/3", "-1/2", "1/-2", "1/x", "18446744073709551616/0"} {
		if l, err := ParseLSN(s); err == nil {
			t.Errorf("ParseLSN(%q) = %v, want an error", s, l)
		}
	}
}

func TestWords(t *testing.T) {
	for code, word := range []string{"master", "slave", "proxy"} {
		if r, err := ParseRole(word); err != nil || r != Role(code) || r.String() != word {
			t.Errorf("ParseRole(%q) = %d, %v", word, r, err)
		}
	}
	for code, word := range []string{"active", "prepare", "down", "ready"} {
		if s, err := ParseState(word); err != nil || s != State(code) || s.String() != word {
			t.Errorf("ParseState(%q) = %d, %v", word, s, err)
		}
	}
	for _, word := range []string{"", "MASTER", "0", "role(0)"} {
		if _, err := ParseRole(word); err == nil {
			t.Errorf("ParseRole(%q): want an error", word)
		}
	}
	if got := Role(9).String(); got != "role(9)" {
		t.Errorf("Role(9) = %q", got)
	}
	if _, err := State(9).MarshalText(); err == nil {
		t.Error("State(9).MarshalText: want an error")
	}
	if _, err := ParseHash("md5"); err == nil {
		t.Error("ParseHash(md5): want an error")
	}
}

func TestNodeJSON(t *testing.T) {
	n := Node{Name: "a", Port: 12121, Role: Slave, State: Prepare, Partition: 2, Balance: 3, ThreadType: 17, Epoch: 4}
	b, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"a","port":12121,"role":"slave","state":"prepare","partition":2,"balance":3,"threadType":17,"epoch":4}`
	if string(b) != want {
		t.Errorf("json = %s, want %s", b, want)
	}
	var back Node
	if err := json.Unmarshal(b, &back); err != nil || back != n {
		t.Errorf("read back %+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"role":"king"}`), &back); err == nil {
		t.Error("unknown role: want an error")
	}
}

func TestSplitKey(t *testing.T) {
	for _, c := range []struct {
		key, name string
		port      int
	}{{"a:1", "a", 1}, {"flare-0.flare.default.svc:12121", "flare-0.flare.default.svc", 12121}, {"::1:80", "::1", 80}, {"h:-5", "h", -5}} {
		name, port, err := SplitKey(c.key)
		if err != nil || name != c.name || port != c.port {
			t.Errorf("SplitKey(%q) = %q, %d, %v", c.key, name, port, err)
		}
		if got := (Node{Name: name, Port: port}).Key(); got != c.key {
			t.Errorf("Key of %q = %q", c.key, got)
		}
	}
	for _, key := range []string{"", "a", "a:", ":1", "a:b"} {
		if _, _, err := SplitKey(key); err == nil {
			t.Errorf("SplitKey(%q): want an error", key)
		}
	}
}

func TestMap(t *testing.T) {
	m := NewMap(3, []Node{{Name: "a", Port: 9}, {Name: "b", Port: 1}, {Name: "a", Port: 10}})
	var keys []string
	for _, n := range m.Nodes {
		keys = append(keys, n.Key())
	}
	if got := strings.Join(keys, " "); got != "a:10 a:9 b:1" {
		t.Errorf("order = %s", got)
	}
	if n, ok := m.Find("a:9"); !ok || n.Port != 9 {
		t.Errorf("Find(a:9) = %v, %v", n, ok)
	}
	if n, ok := m.Find("a:1"); ok {
		t.Errorf("Find(a:1) = %v", n)
	}
	c := m.Clone()
	if !c.Equal(m) {
		t.Error("a clone differs")
	}
	c.Nodes[0].Balance = 1
	if c.Equal(m) || m.Nodes[0].Balance != 0 {
		t.Error("a clone shares nodes")
	}
}

// TestHashEdges covers what the recorded vectors do not: the examples of the protocol's description, keys with NUL
// and the one value that stays negative.
func TestHashEdges(t *testing.T) {
	for _, c := range []struct {
		hash Hash
		key  string
		want int32
	}{
		{HashSimple, "key1", 378},
		{HashSimple, "key1\x00ignored", 378},
		{HashSimple, "\x80", 128},
		{HashCRC32, "a", 390611389},
		{HashJenkins, "a", 526154096},
		{HashMurmur, "a", 1262581116},
		{HashAdler32, "a", 6422626},
		{HashBitshift, "a", 732238126},
	} {
		if got := c.hash.Sum([]byte(c.key)); got != c.want {
			t.Errorf("%v(%q) = %d, want %d", c.hash, c.key, got, c.want)
		}
	}
	key := []byte("some key of usual length:0001")
	for h := range Hash(len(hashWords)) {
		if n := testing.AllocsPerRun(100, func() { h.Sum(key) }); n != 0 {
			t.Errorf("%v allocates %v times", h, n)
		}
		long := slices.Repeat([]byte{0x81}, 100)
		for n := range long {
			if got := h.Sum(long[:n]); got < 0 && got != math.MinInt32 {
				t.Errorf("%v of %d bytes = %d", h, n, got)
			}
		}
	}
}

func TestResolverGrowth(t *testing.T) {
	r := resolver(t, DefaultMeta())
	want := []int{0, 0, 2, 2, 2, 5, 5, 5}
	for n, p := range want {
		if got := r.Partition([]byte("test_key1"), n+1); got != p {
			t.Errorf("partition of test_key1 among %d = %d, want %d", n+1, got, p)
		}
	}
	for _, n := range []int{-1, 0, 1024, 1 << 30} {
		if got := r.Partition([]byte("k"), n); got != NoPartition {
			t.Errorf("partition among %d = %d, want none", n, got)
		}
	}
	rows := r.grow(40)
	for n := 2; n <= 40; n++ {
		for v := range rows[n-1] {
			if from, to := rows[n-2][v], rows[n-1][v]; from != to && to != uint16(n-1) {
				t.Fatalf("growing to %d partitions moves slot %d from %d to %d", n, v, from, to)
			}
		}
	}
}

func TestResolverConcurrent(t *testing.T) {
	r := resolver(t, DefaultMeta())
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := 1; n < 64; n++ {
				if p := r.Partition([]byte{byte(g), byte(n)}, n); p < 0 || p >= n {
					t.Errorf("partition %d among %d", p, n)
				}
			}
		})
	}
	wg.Wait()
}

func TestMetaValidate(t *testing.T) {
	for field, change := range map[string]func(*Meta){
		"partition-size":            func(m *Meta) { m.PartitionSize = 1 },
		"key-hash-algorithm":        func(m *Meta) { m.Hash = 6 },
		"partition-modular-hint":    func(m *Meta) { m.Hint = 0 },
		"partition-modular-virtual": func(m *Meta) { m.Virtual = 0 },
	} {
		m := DefaultMeta()
		change(&m)
		if _, err := NewResolver(m); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("bad %s: error %v", field, err)
		}
	}
	// Only 2^31 among the results stays negative; with an odd number of slots it must still hit one.
	m := DefaultMeta()
	m.Virtual = 4095
	r := resolver(t, m)
	for i := range 1000 {
		if p := r.Partition([]byte{byte(i), byte(i >> 8), 0x80}, 7); p < 0 || p > 6 {
			t.Fatalf("partition %d", p)
		}
	}
}

// nodes reads lines "key role state partition balance [epoch]" for the view tests.
func nodes(t *testing.T, table string) []Node {
	t.Helper()
	var all []Node
	for line := range strings.Lines(strings.TrimSpace(table)) {
		var n Node
		f := strings.Fields(line)
		var err error
		if n.Name, n.Port, err = SplitKey(f[0]); err != nil {
			t.Fatal(err)
		}
		if n.Role, err = ParseRole(f[1]); err != nil {
			t.Fatal(err)
		}
		if n.State, err = ParseState(f[2]); err != nil {
			t.Fatal(err)
		}
		for i, to := range []*int{&n.Partition, &n.Balance} {
			if err := json.Unmarshal([]byte(f[3+i]), to); err != nil {
				t.Fatal(err)
			}
		}
		if len(f) > 5 {
			if err := json.Unmarshal([]byte(f[5]), &n.Epoch); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, n)
	}
	return all
}

// describe writes a view as one line a partition.
func describe(v View) string {
	var b strings.Builder
	one := func(p Partition, kind string) {
		b.WriteString(kind)
		j, _ := json.Marshal(p.Number)
		b.Write(j)
		j, _ = json.Marshal(p.Epoch)
		b.WriteString(" e" + string(j) + " master=" + p.Master + "/" + p.MasterState.String() + " slaves=")
		for i, s := range p.Slaves {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(s.Key() + "/" + s.State.String())
		}
		b.WriteString(" read=" + strings.Join(p.ReadList, ",") + "\n")
	}
	for _, p := range v.Partitions {
		one(p, "p")
	}
	if v.Preparing != nil {
		one(*v.Preparing, "q")
	}
	return strings.TrimSpace(b.String())
}

func TestBuildView(t *testing.T) {
	for _, c := range []struct {
		name, table, want string // want "" means an invalid layout
		empty             bool
	}{
		{name: "nothing", empty: true},
		{name: "proxies only", table: `
			a:1 proxy active -1 0
			b:1 proxy down -1 0`, empty: true},
		{name: "two partitions with slaves", table: `
			d:1 slave prepare 1 5
			c:1 slave active 0 2
			b:1 master active 1 1 7
			a:1 master active 0 1 3
			e:1 slave down 0 1
			f:1 slave active 9 1`,
			want: `p0 e3 master=a:1/active slaves=c:1/active read=a:1,c:1,c:1
p1 e7 master=b:1/active slaves=d:1/prepare read=b:1`},
		{name: "the second master of a partition is ignored", table: `
			b:1 master active 0 1 9
			a:1 master active 0 2 3`,
			want: `p0 e3 master=a:1/active slaves= read=a:1,a:1`},
		{name: "preserved master", table: `
			a:1 master down 0 1 3
			b:1 slave prepare 0 1`,
			want: `p0 e3 master=/down slaves=b:1/prepare read=`},
		{name: "replaced preserved master", table: `
			a:1 master down 0 1 3
			b:1 master active 0 1 4`,
			want: `p0 e4 master=b:1/active slaves= read=b:1`},
		{name: "preparing partition", table: `
			a:1 master active 0 1 1
			b:1 master prepare 1 1 2
			c:1 slave prepare 1 1`,
			want: `p0 e1 master=a:1/active slaves= read=a:1
q1 e2 master=b:1/prepare slaves=c:1/prepare read=b:1`},
		{name: "ready partition", table: `
			a:1 master active 0 0
			b:1 master ready 1 1`,
			want: `p0 e0 master=a:1/active slaves= read=
q1 e0 master=b:1/ready slaves= read=b:1`},
		{name: "negative balance", table: `
			a:1 master active 0 -4`,
			want: `p0 e0 master=a:1/active slaves= read=`},
		{name: "gap", table: `
			a:1 master active 1 1`},
		{name: "master without partition", table: `
			a:1 master active -1 1`},
		{name: "preparing partition with an active number", table: `
			a:1 master active 0 1
			b:1 master prepare 0 1`},
		{name: "preparing partition too far", table: `
			a:1 master active 0 1
			b:1 master prepare 2 1`},
		{name: "two preparing partitions", table: `
			a:1 master active 0 1
			b:1 master prepare 1 1
			c:1 master ready 2 1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list []Node
			if c.table != "" {
				list = nodes(t, c.table)
			}
			v, err := BuildView(list)
			if c.want == "" && !c.empty {
				if !errors.Is(err, ErrLayout) {
					t.Fatalf("error = %v, want ErrLayout; view:\n%s", err, describe(v))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(v); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestPartitionMembers(t *testing.T) {
	v, err := BuildView(nodes(t, `
		a:1 master active 0 1
		b:1 slave prepare 0 1
		c:1 slave down 0 1
		d:1 master down 1 1`))
	if err != nil {
		t.Fatal(err)
	}
	p, q := v.Partitions[0], v.Partitions[1]
	if !p.Has("a:1") || !p.Has("b:1") || p.Has("c:1") || p.HasSlave("a:1") || q.Has("") || q.Has("d:1") {
		t.Error("wrong members")
	}
}

func TestReadListBounded(t *testing.T) {
	v, err := BuildView([]Node{
		{Name: "a", Port: 1, Balance: math.MaxInt},
		{Name: "b", Port: 1, Role: Slave, Balance: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	list := v.Partitions[0].ReadList
	if len(list) > maxReadList+2 || !slices.Contains(list, "b:1") {
		t.Errorf("%d entries, with b: %v", len(list), slices.Contains(list, "b:1"))
	}
}

func BenchmarkPartition(b *testing.B) {
	r, err := NewResolver(DefaultMeta())
	if err != nil {
		b.Fatal(err)
	}
	key := []byte("some key of usual length:0001")
	b.ReportAllocs()
	for b.Loop() {
		r.Partition(key, 8)
	}
}
