package sidecar

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/options/wire"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// at is a moment of a test, in milliseconds from its beginning.
func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

func up(ms int, instance string) FlaredStatus {
	return FlaredStatus{at(ms), &agentv1.NodeStatus{Node: "n:1", Instance: instance, Serving: true}}
}

func file(ms int, text string, generation int64) ConfigRead {
	return ConfigRead{at(ms), File{Present: true, Text: text, Hash: "h:" + text, Generation: generation}}
}

// answers is what a flared that has these options answers to a text.
func answers(ms int, attempt uint64, text string) ApplyDone {
	running := options.Default()
	wanted, settings, err := options.Parse("elsewhere", []byte(text), options.Default())
	if err == nil {
		running = running.WithLive(wanted)
	}
	resp := &agentv1.ApplyOptionsResponse{Accepted: err == nil}
	for _, r := range options.Report(running, wanted, settings, err, nil) {
		resp.Options = append(resp.Options, wire.Status(r, 0))
	}
	return ApplyDone{At: at(ms), Attempt: attempt, Response: resp}
}

// show is the part of the state that the transcripts are about.
func show(s State, act *Apply) string {
	var b strings.Builder
	if s.Flared.Alive {
		fmt.Fprintf(&b, "up(%s)", s.Flared.Status.GetInstance())
	} else {
		b.WriteString("down")
	}
	if s.Flared.Restarts > 0 {
		fmt.Fprintf(&b, " ended=%d", s.Flared.Restarts)
	}
	st := s.Status().GetConfig()
	fmt.Fprintf(&b, " gen=%d hash=%q applied=%q", st.GetGeneration(), st.GetHash(), st.GetAppliedHash())
	if st.GetRejected() {
		b.WriteString(" REJECTED")
	}
	if st.GetMessage() != "" {
		fmt.Fprintf(&b, " %q", st.GetMessage())
	}
	if act != nil {
		fmt.Fprintf(&b, " -> apply %d %q", act.Attempt, act.Text)
	}
	return b.String()
}

func TestStep(t *testing.T) {
	const good, other, bad = "max-connection = 5\n", "max-connection = 6\n", "max-connection = 0\n"
	const wrong = "extra.conf:1: max-connection is 0; it must be a whole number of connections from 1 to 1000000"
	type step struct {
		e    Event
		want string
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"configuration first, flared later", []step{
			{file(0, good, 3), `down gen=3 hash="h:max-connection = 5\n" applied=""`},
			{Tick{at(500)}, `down gen=3 hash="h:max-connection = 5\n" applied=""`},
			{up(600, "a"), `up(a) gen=3 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{up(700, "a"), `up(a) gen=3 hash="h:max-connection = 5\n" applied=""`},
			{answers(800, 1, good), `up(a) gen=3 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
			{Tick{at(5000)}, `up(a) gen=3 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
		}},
		{"flared first, configuration later", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(10, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
		}},
		{"a new generation of the same text is not applied again", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{answers(5, 1, good), `up(a) gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
			{file(10, good, 2), `up(a) gen=2 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
		}},
		{"rejected here, and then by flared; then mended", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{answers(5, 1, good), `up(a) gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
			{file(10, bad, 2), `up(a) gen=2 hash="h:max-connection = 0\n" applied="h:max-connection = 5\n" REJECTED "` + wrong + `" -> apply 2 "max-connection = 0\n"`},
			{answers(15, 2, bad), `up(a) gen=2 hash="h:max-connection = 0\n" applied="h:max-connection = 5\n" REJECTED "` + wrong + `"`},
			{file(20, other, 3), `up(a) gen=3 hash="h:max-connection = 6\n" applied="h:max-connection = 5\n" -> apply 3 "max-connection = 6\n"`},
			{answers(25, 3, other), `up(a) gen=3 hash="h:max-connection = 6\n" applied="h:max-connection = 6\n"`},
		}},
		{"rejected while flared is away", []step{
			{file(0, bad, 2), `down gen=2 hash="h:max-connection = 0\n" applied="" REJECTED "` + wrong + `"`},
			{up(10, "a"), `up(a) gen=2 hash="h:max-connection = 0\n" applied="" REJECTED "` + wrong + `" -> apply 1 "max-connection = 0\n"`},
		}},
		{"rejected by flared alone", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{ApplyDone{At: at(5), Attempt: 1, Response: &agentv1.ApplyOptionsResponse{Options: []*agentv1.OptionStatus{
				{Key: "later", Line: 3, State: agentv1.OptionState_OPTION_STATE_REJECTED, Reason: options.ReasonFileRejected},
				{Key: "max-connection", Line: 1, State: agentv1.OptionState_OPTION_STATE_REJECTED, Reason: "no", Message: "is too much; at most 4"},
			}}}, `up(a) gen=1 hash="h:max-connection = 5\n" applied="" REJECTED "extra.conf:1: max-connection is too much; at most 4"`},
		}},
		{"accepted by a newer flared", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, bad, 1), `up(a) gen=1 hash="h:max-connection = 0\n" applied="" REJECTED "` + wrong + `" -> apply 1 "max-connection = 0\n"`},
			{ApplyDone{At: at(5), Attempt: 1, Response: &agentv1.ApplyOptionsResponse{Accepted: true}}, `up(a) gen=1 hash="h:max-connection = 0\n" applied="h:max-connection = 0\n"`},
		}},
		{"changed while on its way", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{file(5, other, 2), `up(a) gen=2 hash="h:max-connection = 6\n" applied=""`},
			{answers(9, 1, good), `up(a) gen=2 hash="h:max-connection = 6\n" applied="" -> apply 2 "max-connection = 6\n"`},
			{answers(12, 2, other), `up(a) gen=2 hash="h:max-connection = 6\n" applied="h:max-connection = 6\n"`},
		}},
		{"flared does not answer, and is asked again later", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{ApplyDone{At: at(100), Attempt: 1, Err: "busy"}, `up(a) gen=1 hash="h:max-connection = 5\n" applied="" "extra.conf is not applied yet: busy"`},
			{Tick{at(1099)}, `up(a) gen=1 hash="h:max-connection = 5\n" applied="" "extra.conf is not applied yet: busy"`},
			{Tick{at(1100)}, `up(a) gen=1 hash="h:max-connection = 5\n" applied="" "extra.conf is not applied yet: busy" -> apply 2 "max-connection = 5\n"`},
			{answers(1200, 2, good), `up(a) gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
		}},
		{"a process ends, another comes and is told", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{FlaredLost{at(10)}, `down ended=1 gen=1 hash="h:max-connection = 5\n" applied=""`},
			{ApplyDone{At: at(11), Attempt: 1, Err: "gone"}, `down ended=1 gen=1 hash="h:max-connection = 5\n" applied=""`},
			{FlaredLost{at(12)}, `down ended=1 gen=1 hash="h:max-connection = 5\n" applied=""`},
			{up(20, "b"), `up(b) ended=1 gen=1 hash="h:max-connection = 5\n" applied="" -> apply 2 "max-connection = 5\n"`},
			{answers(21, 1, good), `up(b) ended=1 gen=1 hash="h:max-connection = 5\n" applied=""`},
			{answers(22, 2, good), `up(b) ended=1 gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
		}},
		{"a process is replaced unseen", []step{
			{file(0, good, 1), `down gen=1 hash="h:max-connection = 5\n" applied=""`},
			{up(0, "a"), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{up(10, "b"), `up(b) ended=1 gen=1 hash="h:max-connection = 5\n" applied="" -> apply 2 "max-connection = 5\n"`},
		}},
		{"only the socket was lost", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{FlaredLost{at(10)}, `down ended=1 gen=0 hash="" applied=""`},
			{up(20, "a"), `up(a) gen=0 hash="" applied=""`},
		}},
		{"nothing to read is an empty configuration", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{ConfigRead{at(0), File{Note: "nothing there"}}, `up(a) gen=0 hash="" applied="" "nothing there" -> apply 1 ""`},
			{answers(5, 1, ""), `up(a) gen=0 hash="" applied="" "nothing there"`},
			{ConfigRead{at(6), File{Note: "nothing there"}}, `up(a) gen=0 hash="" applied="" "nothing there"`},
			{file(10, "", 1), `up(a) gen=1 hash="h:" applied="" -> apply 2 ""`},
			{answers(15, 2, ""), `up(a) gen=1 hash="h:" applied="h:"`},
		}},
		{"a directory that cannot be read changes nothing", []step{
			{up(0, "a"), `up(a) gen=0 hash="" applied=""`},
			{file(0, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="" -> apply 1 "max-connection = 5\n"`},
			{answers(5, 1, good), `up(a) gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
			{ConfigUnreadable{at(6), "permission denied"}, `up(a) gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n" "permission denied"`},
			{file(7, good, 1), `up(a) gen=1 hash="h:max-connection = 5\n" applied="h:max-connection = 5\n"`},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s State
			for i, st := range c.steps {
				before := deepCopy(s)
				next, act := Step(s, st.e)
				if got := show(next, act); got != st.want {
					t.Fatalf("step %d %T:\n got %s\nwant %s", i, st.e, got, st.want)
				}
				if now := deepCopy(s); !reflect.DeepEqual(before, now) {
					t.Fatalf("step %d %T changed the former state", i, st.e)
				}
				s = next
			}
		})
	}
}

// deepCopy is a state by value, for comparison.
func deepCopy(s State) []string {
	st := s.Status()
	return []string{fmt.Sprint(s.Flared.Alive, s.Flared.Heard, s.Config.due, s.Config.dueAt, s.Config.attempt, s.Config.inFlight), st.String()}
}

func optionOf(st *agentv1.AgentStatus, key string) *agentv1.OptionStatus {
	opts := st.GetConfig().GetOptions()
	if i := slices.IndexFunc(opts, func(o *agentv1.OptionStatus) bool { return o.GetKey() == key }); i >= 0 {
		return opts[i]
	}
	return nil
}

func TestOptionsOfARejectedFile(t *testing.T) {
	const text = "rocksdb-sync-writes = true\nmax-conection = 5\nblock-cache-size-mb = 128\n"
	check := func(t *testing.T, s State, effective bool) {
		t.Helper()
		for _, c := range []struct{ key, effective, configured, state, reason string }{
			{"rocksdb-sync-writes", "false", "true", "REJECTED", "file_rejected"},
			{"max-conection", "", "5", "REJECTED", "unknown_option"},
			{"block-cache-size-mb", "64", "128", "REJECTED", "file_rejected"},
		} {
			o := optionOf(s.Status(), c.key)
			want := c.effective
			if !effective {
				want = ""
			}
			if o.GetEffective() != want || o.GetConfigured() != c.configured || o.GetReason() != c.reason ||
				o.GetState().String() != "OPTION_STATE_"+c.state || o.GetLine() == 0 || o.GetMessage() == "" {
				t.Errorf("%s: %v", c.key, o)
			}
		}
	}
	t.Run("before flared was there", func(t *testing.T) {
		s, _ := Step(State{}, file(0, text, 1))
		check(t, s, false)
		if o := optionOf(s.Status(), "max-connection"); o.GetState() != agentv1.OptionState_OPTION_STATE_UNSPECIFIED || o.GetEffective() != "" {
			t.Errorf("nobody has said anything about max-connection, and yet: %v", o)
		}
	})
	t.Run("after flared has answered", func(t *testing.T) {
		s, _ := Step(State{}, up(0, "a"))
		s, _ = Step(s, file(0, text, 1))
		s, _ = Step(s, answers(1, 1, text))
		check(t, s, true)
		if o := optionOf(s.Status(), "max-connection"); o.GetState() != agentv1.OptionState_OPTION_STATE_APPLIED || o.GetEffective() != "10000" {
			t.Errorf("max-connection: %v", o)
		}
	})
}

// A flared may tell of live options alone; a rejection adds what the file names, no more.
func TestOptionsOfAFlaredThatTellsFew(t *testing.T) {
	s, _ := Step(State{}, up(0, "a"))
	s, _ = Step(s, file(0, "max-connection = 0\nblock-cache-size-mb = 128\n", 1))
	s, _ = Step(s, ApplyDone{At: at(1), Attempt: 1, Response: &agentv1.ApplyOptionsResponse{Options: []*agentv1.OptionStatus{
		{Key: "max-connection", Effective: "7"}, {Key: "log-level", Effective: "warn", State: agentv1.OptionState_OPTION_STATE_APPLIED},
	}}})
	var keys []string
	for _, o := range s.Status().GetConfig().GetOptions() {
		keys = append(keys, o.GetKey()+"="+o.GetEffective()+" "+o.GetReason())
	}
	slices.Sort(keys)
	if want := []string{"block-cache-size-mb= file_rejected", "log-level=warn ", "max-connection=7 out_of_range"}; !slices.Equal(keys, want) {
		t.Errorf("options %q, want %q", keys, want)
	}
}

func TestOptionsBetweenFileAndAnswer(t *testing.T) {
	s, _ := Step(State{}, up(0, "a"))
	s, _ = Step(s, file(0, "rocksdb-sync-writes = true\nmax-connection = 7\n", 1))
	s, _ = Step(s, answers(1, 1, "rocksdb-sync-writes = true\nmax-connection = 7\n"))
	if o := optionOf(s.Status(), "max-connection"); o.GetEffective() != "7" || o.GetState() != agentv1.OptionState_OPTION_STATE_APPLIED {
		t.Fatalf("max-connection: %v", o)
	}
	s.Config.Options = append(s.Config.Options, &agentv1.OptionStatus{Key: "newer", Effective: "x", Configured: "x", Line: 9, State: agentv1.OptionState_OPTION_STATE_APPLIED})
	s, _ = Step(s, file(2, "max-connection = 8\n", 2))
	for key, want := range map[string]*agentv1.OptionStatus{
		"max-connection":          {Key: "max-connection", Effective: "7", Configured: "8", Line: 1},
		"rocksdb-sync-writes":     {Key: "rocksdb-sync-writes", Effective: "true"},
		"rocksdb-wal-ttl-seconds": {Key: "rocksdb-wal-ttl-seconds", Effective: "10800", State: agentv1.OptionState_OPTION_STATE_APPLIED},
		"newer":                   {Key: "newer", Effective: "x", State: agentv1.OptionState_OPTION_STATE_APPLIED},
	} {
		if o := optionOf(s.Status(), key); !proto.Equal(o, want) {
			t.Errorf("%s: %v, want %v", key, o, want)
		}
	}
}

func TestChangedAtIsTheTimeOfTheOutcome(t *testing.T) {
	s, _ := Step(State{}, up(0, "a"))
	s, _ = Step(s, file(100, "max-connection = 7\n", 1))
	s, _ = Step(s, answers(150, 1, "max-connection = 7\n"))
	if !s.Config.ChangedAt.Equal(at(150)) {
		t.Errorf("changed at %v", s.Config.ChangedAt)
	}
	// Telling it again to another process is no change.
	s, _ = Step(s, up(1000, "b"))
	s, _ = Step(s, answers(1050, 2, "max-connection = 7\n"))
	if !s.Config.ChangedAt.Equal(at(150)) || s.Config.Applies.Accepted != 2 {
		t.Errorf("changed at %v after %d", s.Config.ChangedAt, s.Config.Applies.Accepted)
	}
}

func TestReadiness(t *testing.T) {
	never, _ := Step(State{}, Tick{at(0)})
	serving, _ := Step(never, up(0, "a"))
	lost, _ := Step(serving, FlaredLost{at(1)})
	not := func(reason string) State {
		s, _ := Step(never, FlaredStatus{at(0), &agentv1.NodeStatus{Instance: "a", NotServingReason: reason}})
		return s
	}
	for _, c := range []struct {
		name   string
		s      State
		now    time.Time
		ready  bool
		reason string
	}{
		{"never seen", never, at(0), false, ReasonFlaredDown},
		{"serving", serving, at(2999), true, ""},
		{"silent", serving, at(3001), false, ReasonFlaredSilent},
		{"ended", lost, at(1), false, ReasonFlaredDown},
		{"not registered", not("index_unreachable"), at(1), false, "index_unreachable"},
		{"not serving, no reason", not(""), at(1), false, ReasonFlaredNotServing},
	} {
		got := c.s.Readiness(c.now)
		if got.Ready != c.ready || got.Reason != c.reason || (got.Message == "") != c.ready {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	// A process that hangs is not dead: reporting it so would make another master.
	s, _ := Step(serving, Tick{at(60000)})
	if !s.Status().GetFlaredAlive() {
		t.Error("a silent flared is reported dead")
	}
}

func TestUrgent(t *testing.T) {
	base := func() *agentv1.AgentStatus {
		return &agentv1.AgentStatus{FlaredAlive: true, Flared: &agentv1.NodeStatus{Instance: "a", Serving: true, Lsn: &agentv1.Lsn{Index: 1}}, Config: &agentv1.ConfigStatus{}}
	}
	for _, c := range []struct {
		name   string
		change func(*agentv1.AgentStatus)
		want   bool
	}{
		{"nothing", func(*agentv1.AgentStatus) {}, false},
		{"position", func(s *agentv1.AgentStatus) { s.Flared.Lsn = &agentv1.Lsn{Index: 2} }, false},
		{"connections", func(s *agentv1.AgentStatus) { s.Flared.Connections = 9 }, false},
		{"dead", func(s *agentv1.AgentStatus) { s.FlaredAlive = false }, true},
		{"another process", func(s *agentv1.AgentStatus) { s.Flared.Instance = "b" }, true},
		{"not serving", func(s *agentv1.AgentStatus) { s.Flared.Serving = false }, true},
		{"role", func(s *agentv1.AgentStatus) { s.Flared.Role = agentv1.Role_ROLE_MASTER }, true},
		{"state", func(s *agentv1.AgentStatus) { s.Flared.State = agentv1.State_STATE_DOWN }, true},
		{"partition", func(s *agentv1.AgentStatus) { s.Flared.Partition = new(uint32(1)) }, true},
		{"rejected", func(s *agentv1.AgentStatus) { s.Config.Rejected = true }, true},
		{"applied", func(s *agentv1.AgentStatus) { s.Config.AppliedHash = "x" }, true},
	} {
		to := base()
		c.change(to)
		if got := Urgent(base(), to); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
