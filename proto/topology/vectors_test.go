package topology

import (
	"bufio"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
)

// The vectors in testdata were made with the library of the C++ programs.

// readVectors decodes a compressed file of one JSON object a line.
func readVectors[T any](t *testing.T, name string) []T {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []T
	for dec := json.NewDecoder(bufio.NewReader(z)); dec.More(); {
		var v T
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func resolver(t *testing.T, m Meta) *Resolver {
	t.Helper()
	r, err := NewResolver(m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeyHashVectors(t *testing.T) {
	type vector struct {
		KeyHex    string                    `json:"key_hex"`
		Hash      map[string]int32          `json:"hash"`
		Partition map[string]map[string]int `json:"partition"` // set-up -> number of partitions -> partition
	}
	vectors := readVectors[vector](t, "key-hash-vectors")
	if len(vectors) < 100 {
		t.Fatalf("%d vectors, want the whole file", len(vectors))
	}
	resolvers := map[string]*Resolver{}
	for _, v := range vectors {
		key, err := hex.DecodeString(v.KeyHex)
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Hash) != len(hashWords) {
			t.Fatalf("key %q: %d hashes, want %d", key, len(v.Hash), len(hashWords))
		}
		for name, want := range v.Hash {
			h, err := ParseHash(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.Sum(key); got != want {
				t.Errorf("%s(%q) = %d, want %d", name, key, got, want)
			}
		}
		for setup, counts := range v.Partition {
			r := resolvers[setup]
			if r == nil {
				var m Meta
				hash := setup[:slices.Index([]byte(setup), '/')]
				if m.Hash, err = ParseHash(hash); err != nil {
					t.Fatal(err)
				}
				if _, err := fmt.Sscanf(setup[len(hash):], "/size=%d,hint=%d,virtual=%d", &m.PartitionSize, &m.Hint, &m.Virtual); err != nil {
					t.Fatalf("set-up %q: %v", setup, err)
				}
				r = resolver(t, m)
				resolvers[setup] = r
			}
			for count, want := range counts {
				n, err := strconv.Atoi(count)
				if err != nil {
					t.Fatal(err)
				}
				if got := r.Partition(key, n); got != want {
					t.Errorf("%s: partition of %q among %d = %d, want %d", setup, key, n, got, want)
				}
			}
		}
	}
	if len(resolvers) != 21 {
		t.Errorf("%d resolver set-ups, want 21", len(resolvers))
	}
}

func TestPartitionMapVectors(t *testing.T) {
	type vector struct {
		PartitionSize int      `json:"partition_size"`
		Hint          int      `json:"hint"`
		Virtual       int      `json:"virtual"`
		Partitions    int      `json:"partitions"`
		Map           []uint16 `json:"map"` // the first slots
		Count         []int    `json:"count_per_partition"`
		FNV           string   `json:"fnv1a64_of_full_map"`
	}
	for _, v := range readVectors[vector](t, "partition-map-vectors") {
		name := fmt.Sprintf("size=%d,hint=%d,virtual=%d,partitions=%d", v.PartitionSize, v.Hint, v.Virtual, v.Partitions)
		r := resolver(t, Meta{PartitionSize: v.PartitionSize, Hint: v.Hint, Virtual: v.Virtual})
		row := r.grow(v.Partitions)[v.Partitions-1]
		if !slices.Equal(row[:len(v.Map)], v.Map) {
			t.Errorf("%s: first slots differ", name)
		}
		counts := make([]int, v.Partitions)
		sum := uint64(1469598103934665603) // FNV-1a over one byte a slot; the recording's start value, not FNV's own
		for _, p := range row {
			counts[p]++
			sum = (sum ^ uint64(p)) * 1099511628211
		}
		if !slices.Equal(counts, v.Count) {
			t.Errorf("%s: counts = %v, want %v", name, counts, v.Count)
		}
		if got := fmt.Sprintf("%016x", sum); got != v.FNV {
			t.Errorf("%s: sum of the whole row = %s, want %s", name, got, v.FNV)
		}
	}
}
