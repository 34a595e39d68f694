package replication

import (
	"testing"
	"time"

	"github.com/flarekv/flare/agent/replication/history"
)

// A catch-up by a full copy, as it looks from outside at each of its moments.
func TestCatchUpProgress(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	var c catchUp
	tell := func(name string, now float64, want Progress) {
		t.Helper()
		if want.Phase != PhaseNone {
			want.Tier, want.Reason, want.Since = history.TierCheckpoint, "purged", start
		}
		if got := c.progress(at(now)); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
	c.applied(start, 7, 9, 100)
	c.copied(start, 1, 2, 0)
	c.install()
	tell("nothing has begun", 0, Progress{ETA: -1})

	c.begin(start, history.TierCheckpoint, "purged")
	tell("the master makes its checkpoint", 1, Progress{Phase: PhaseWaiting, ETA: -1})
	c.copied(at(2), 0, 1000, 0)
	tell("there is no rate yet", 2, Progress{Phase: PhaseCopy, BytesTotal: 1000, ETA: -1})
	c.copied(at(4), 200, 1000, 0)
	tell("a fifth", 4, Progress{Phase: PhaseCopy, BytesDone: 200, BytesTotal: 1000, Rate: 100, ETA: 8 * time.Second})
	tell("nothing comes any more", 6, Progress{Phase: PhaseCopy, BytesDone: 200, BytesTotal: 1000, Rate: 50, ETA: 16 * time.Second})
	tell("for longer than rates look back", 30, Progress{Phase: PhaseCopy, BytesDone: 200, BytesTotal: 1000, ETA: -1})
	c.copied(at(31), 1000, 1000, 0)
	c.install()
	tell("all is there", 32, Progress{Phase: PhaseInstall, ETA: -1})

	c.log(at(33), 50, 150)
	tell("what came meanwhile", 33, Progress{Phase: PhaseLog, BatchesAll: 100, ETA: -1})
	c.applied(at(35), 70, 160, 4000)
	tell("the master goes on writing", 35, Progress{Phase: PhaseLog, BytesDone: 4000, BytesTotal: 22000, BatchesDone: 20, BatchesAll: 110,
		Rate: 2000, ETA: 9 * time.Second})
	c.applied(at(36), 160, 160, 4000)
	tell("the end", 36, Progress{ETA: -1})
}

func TestCatchUpWithNothingToDo(t *testing.T) {
	var c catchUp
	c.begin(time.Unix(1, 0), history.TierWAL, "same_history")
	if c.log(time.Unix(2, 0), 9, 9); c.running() {
		t.Error("there is nothing behind the end of the log")
	}
}

// Nobody knows how much a copy by dump is, so there is a rate but no end.
func TestCatchUpByDump(t *testing.T) {
	var c catchUp
	now := time.Unix(1, 0)
	c.begin(now, history.TierDump, reasonNotSupported)
	c.copied(now, 0, 0, 0)
	c.copied(now.Add(time.Second), 300, 0, 3)
	p := c.progress(now.Add(time.Second))
	if p.Phase != PhaseCopy || p.BytesDone != 300 || p.Records != 3 || p.Rate != 300 || p.ETA >= 0 {
		t.Errorf("%+v", p)
	}
}
