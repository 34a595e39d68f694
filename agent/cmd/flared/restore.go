package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/flarekv/flare/agent/backup"
	"github.com/flarekv/flare/agent/storage"
)

// Exit codes of flared restore beside 0, exitFailure and exitUsage.
const (
	exitBadBackup = 3 // the backup is not whole; another one may be
	exitRefused   = 4 // the data directory is not as it must be; nothing was changed
)

const restoreUsage = `usage: flared restore --from DIR --data-dir DIR [--force] [--new-history[=ID]]
       flared restore --from DIR --check

Puts a copy of a backup, as the agent's CreateCheckpoint makes it, into a data
directory while flared does not run. Every file is checked against the backup's
manifest first; the backup is not changed. The database appears whole or not at all.

  --from DIR          the backup: the directory that flare-backup.json is in
  --data-dir DIR      flared's data directory; created if missing
  --force             replace the database that is there
  --new-history[=ID]  the copy begins a history of its own: give it when the node is
                      to be the master of what was restored (disaster, or going back
                      in time). ID, as another restore of the same backup printed it,
                      makes both one history.
  --check             only check the backup

Exit codes: 0 done; 1 something failed, nothing was changed; 2 wrong command line;
3 the backup is not complete or is damaged; 4 refused: the data directory has a
database (see --force), is in use by a running flared, or has too little space.
`

// optionalValue is a flag that may be given with or without a value.
type optionalValue struct {
	given bool
	value string
}

func (o *optionalValue) String() string   { return o.value }
func (o *optionalValue) IsBoolFlag() bool { return true }
func (o *optionalValue) Set(v string) error {
	o.given, o.value = v != "false", ""
	if v != "true" && v != "false" {
		o.value = v
	}
	return nil
}

// restore is the command flared restore.
func restore(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("flared restore", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	from := fs.String("from", "", "")
	dataDir := fs.String("data-dir", "", "")
	force := fs.Bool("force", false, "")
	check := fs.Bool("check", false, "")
	var history optionalValue
	fs.Var(&history, "new-history", "")
	usage := func(format string, a ...any) int {
		fmt.Fprintf(stderr, "flared restore: "+format+"; flared restore --help tells more\n", a...)
		return exitUsage
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, restoreUsage)
		return 0
	case err != nil:
		return usage("%v", err)
	case fs.NArg() > 0:
		return usage("unexpected argument %q", fs.Arg(0))
	case *from == "":
		return usage("--from is required: the directory of the backup")
	case *check && (*dataDir != "" || *force || history.given):
		return usage("--check changes nothing, so it goes with --from only")
	case !*check && *dataDir == "":
		return usage("--data-dir is required: flared's data directory")
	}
	if history.given && history.value == "" {
		history.value = storage.NewHistory()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report := reporter(stderr)
	if *check {
		m, err := backup.Verify(ctx, *from, report)
		if err != nil {
			return failed(stderr, err)
		}
		describe(stdout, m)
		fmt.Fprintln(stdout, "the backup is whole")
		return 0
	}
	r, err := backup.Restore(ctx, backup.Restoration{From: *from, DataDir: *dataDir, Replace: *force, History: history.value}, report)
	if err != nil {
		return failed(stderr, err)
	}
	describe(stdout, r.Manifest)
	fmt.Fprintf(stdout, "restored to %s: position %v of history %s\n\n%s", *dataDir, r.Position.LSN, r.Position.History, next(r, history.given))
	return 0
}

// describe tells what a backup is.
func describe(w io.Writer, m backup.Manifest) {
	fmt.Fprintf(w, "backup of partition %d by %s (flared %s) at %s: position %v of history %s, %d files, %d bytes\n",
		m.Partition, m.Node, m.Version, m.CreatedAt.Format(time.RFC3339), m.LSN(), m.History, len(m.Files), m.Bytes())
}

// next tells what happens when the node starts.
func next(r backup.Restored, began bool) string {
	if !began {
		return fmt.Sprintf(`What happens when flared starts here:
  As a replica it tells its master the position above and gets what it lacks: from
  the log if the master still has it that far back, or else as a full copy.
  If instead this copy is to be what the partition goes on with, because no node has
  anything better or to go back in time, run this again with --force --new-history,
  and empty the partition's other nodes. Without that, a node that comes back with
  later data of history %s could be taken for one that has the same.
`, r.Position.History)
	}
	return fmt.Sprintf(`What happens when flared starts here:
  The copy is the beginning of a new history. As the partition's first node it becomes
  its master. All that was written after the backup is gone; nodes that still have it
  belong to another history and copy this node's data when they return as replicas.
  As a replica of another master this node copies that one's data: the restore was in vain.
  To restore the partition's other nodes from the same backup, instead of letting them
  copy over the network, give them --new-history=%s
`, r.Position.History)
}

// failed tells why nothing was restored, and returns the exit code.
func failed(w io.Writer, err error) int {
	var refused *backup.Error
	if !errors.As(err, &refused) {
		fmt.Fprintf(w, "flared restore: failed, the data directory is as it was: %v\n", err)
		return exitFailure
	}
	code, hint := exitFailure, ""
	switch refused.Reason {
	case backup.ReasonIncomplete:
		code, hint = exitBadBackup, "take another backup"
	case backup.ReasonDamaged, backup.ReasonUnknown:
		code, hint = exitBadBackup, "do not use this backup, take another one"
	case backup.ReasonNotFound:
		code, hint = exitBadBackup, "ls the backup directory; the default is backup in flared's data directory"
	case backup.ReasonNotEmpty:
		code, hint = exitRefused, "--force replaces it"
	case backup.ReasonInUse:
		code, hint = exitRefused, "stop flared first"
	case backup.ReasonNoSpace:
		code, hint = exitRefused, "make room; the old database stays until the new one is whole"
	case backup.ReasonWrongHistory:
		code, hint = exitUsage, "leave =ID away for a new one"
	}
	fmt.Fprintf(w, "flared restore: %s: %v\n", refused.Reason, err)
	if hint != "" {
		fmt.Fprintf(w, "flared restore: nothing was changed; %s\n", hint)
	}
	return code
}

// reporter shows about once a second how far it is.
func reporter(w io.Writer) func(backup.Progress) error {
	told := time.Now()
	return func(p backup.Progress) error {
		now := time.Now()
		if now.Sub(told) < time.Second {
			return nil
		}
		told = now
		eta := "unknown"
		if p.ETA >= 0 {
			eta = p.ETA.Round(time.Second).String()
		}
		percent := 100.0
		if p.Bytes > 0 {
			percent = 100 * float64(p.BytesDone) / float64(p.Bytes)
		}
		_, err := fmt.Fprintf(w, "%3.0f %%  %d of %d files, %d of %d bytes, %.1f MB/s, %s left\n",
			percent, p.FilesDone, p.Files, p.BytesDone, p.Bytes, p.Rate/1e6, eta)
		return err
	}
}
