package procs

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// cutStreams ends all streams to replicas of a node.
func cutStreams(t *testing.T, addr string, want int) {
	t.Helper()
	say := func(command, end string) string {
		t.Helper()
		nc, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(nc, command+"\r\nquit\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(nc)
		if err != nil || !strings.HasSuffix(string(answer), end+"\r\n") {
			t.Fatalf("%s: %q, %v", command, answer, err)
		}
		return string(answer)
	}
	ids := regexp.MustCompile(`STAT (\d+):type`).FindAllStringSubmatch(say("stats threads slave", "END"), -1)
	if len(ids) != want {
		t.Fatalf("%d streams, want %d", len(ids), want)
	}
	for _, id := range ids {
		say("kill "+id[1], "OK")
	}
}

// TestOldMasterRewinds kills a master of an async partition that has writes which
// nobody else has: both replicas stand still and their streams are cut before. When it
// returns those writes are undone, its other records are not copied, and its
// successor's sibling needs nothing but the log.
func TestOldMasterRewinds(t *testing.T) {
	t.Parallel()
	// Nobody is to be taken for dead for being stopped a moment.
	c := start(t, Options{Partitions: 1, Replicas: 3, ReplicationMode: "async", FlaredArgs: []string{"--replication-timeout=20000"}})
	old := master(t, c, 0)
	cl := client(old.Addr)
	defer cl.Close()
	set := func(key, value string) {
		t.Helper()
		if err := cl.Set(&memcache.Item{Key: key, Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	pipelined(t, old.Addr, "bulk:", 2000, 1000)
	for i := range 10 {
		set(fmt.Sprint("kept:", i), "shared")
		set(fmt.Sprint("deleted:", i), "shared")
	}
	equal := func(n *Node) error {
		mine, theirs := agentStatus(t, n).Flared.GetLsn(), agentStatus(t, master(t, c, 0)).Flared.GetLsn()
		if mine.GetEpoch() != theirs.GetEpoch() || mine.GetIndex() != theirs.GetIndex() || mine.GetIndex() == 0 {
			return fmt.Errorf("%s is at %v, its master at %v", n.Addr, mine, theirs)
		}
		return nil
	}
	var others []*Node
	for _, n := range c.Nodes {
		if n != old {
			others = append(others, n)
			eventually(t, patience, "the replicas have everything", func() error { return equal(n) })
		}
	}

	for _, n := range others {
		if err := n.Flared.Freeze(); err != nil {
			t.Fatal(err)
		}
	}
	cutStreams(t, old.Addr, len(others))
	for i := range 10 {
		set(fmt.Sprint("kept:", i), "lost")
		set(fmt.Sprint("new:", i), "lost")
		if err := cl.Delete(fmt.Sprint("deleted:", i)); err != nil {
			t.Fatal(err)
		}
	}
	old.Flared.Kill()
	for _, n := range others {
		if err := n.Flared.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, patience, "another master", func() error {
		if master(t, c, 0) == old {
			return errors.New("still the killed one")
		}
		return nil
	})
	now := master(t, c, 0)
	via := client(now.Addr)
	defer via.Close()
	eventually(t, patience, "the new master takes writes", func() error {
		return via.Set(&memcache.Item{Key: "after", Value: []byte("v")})
	})
	if err := old.Flared.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, c)
	want, err := takeDump(now.Addr)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if want.records[fmt.Sprint("kept:", i)] != "shared" || want.records[fmt.Sprint("deleted:", i)] != "shared" || want.records[fmt.Sprint("new:", i)] != "" {
			t.Fatalf("the new master has got what was to be lost: the test is about nothing")
		}
	}
	for _, n := range c.Nodes {
		if n == now {
			continue
		}
		eventually(t, patience, "the replicas are where their master is", func() error { return equal(n) })
		got, err := takeDump(n.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if got.digest != want.digest {
			t.Errorf("%s has %d records, its master %d, or others", n.Addr, len(got.records), len(want.records))
		}
		s := agentStatus(t, n).Flared
		counts := s.GetCatchUpCounts()
		if counts.GetCheckpoint() != 0 {
			t.Errorf("%s copied everything: %v", n.Addr, counts)
		}
		tier := agentv1.Tier_TIER_WAL
		if n == old {
			tier = agentv1.Tier_TIER_REWIND
			// 30 records; each delete also left a tombstone.
			if counts.GetRewind() != 1 || counts.GetRewoundKeys() != 40 || counts.GetRewoundBytes() > 4000 {
				t.Errorf("%s: %v, want one rewind of 40 entries", n.Addr, counts)
			}
			if out := stats(t, n.Addr); !strings.Contains(out, "STAT rocksdb_wal_rewinds 1\r\n") || !strings.Contains(out, "STAT rocksdb_wal_rewind_keys 40\r\n") {
				t.Errorf("stats of %s do not show the rewind", n.Addr)
			}
		} else if counts.GetRewind() != 0 {
			t.Errorf("%s: %v, a sibling needs the log only", n.Addr, counts)
		}
		if s.CatchUp.GetTier() != tier {
			t.Errorf("%s caught up by %s, want %s", n.Addr, s.CatchUp.GetTier(), tier)
		}
	}
}
