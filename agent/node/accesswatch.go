package node

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/storage"
)

// An accessWatcher looks at the longest access to the storage now and then, says
// so when it is long, and lets ping fail while it is very long.
type accessWatcher struct {
	db     *storage.DB
	logger *slog.Logger
	wake   chan struct{} // capacity 1: the options changed

	mu   sync.Mutex
	opts options.TimeWatcher

	slow atomic.Bool // ping is answered with an error
}

func newAccessWatcher(db *storage.DB, logger *slog.Logger) *accessWatcher {
	return &accessWatcher{db: db, logger: logger, wake: make(chan struct{}, 1)}
}

// set changes what is watched for.
func (w *accessWatcher) set(o options.TimeWatcher) {
	w.mu.Lock()
	w.opts = o
	w.mu.Unlock()
	w.db.WatchAccess(o.Enabled && o.PollingInterval > 0)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run watches until ctx ends.
func (w *accessWatcher) run(ctx context.Context) {
	for {
		w.mu.Lock()
		o := w.opts
		w.mu.Unlock()
		var tick <-chan time.Time
		if o.Enabled && o.PollingInterval > 0 {
			tick = time.After(o.PollingInterval)
		} else {
			w.slow.Store(false)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-tick:
			w.look(o, w.db.LongestAccess())
		}
	}
}

// look judges the longest access since the last look.
func (w *accessWatcher) look(o options.TimeWatcher, longest time.Duration) {
	slow := o.PingNG > 0 && longest >= o.PingNG
	if o.Warn > 0 && longest >= o.Warn {
		w.logger.Warn("slow access to the storage", "reason", "storage_slow",
			"longest", longest.String(), "threshold", o.Warn.String())
	}
	switch was := w.slow.Swap(slow); {
	case slow && !was:
		w.logger.Error("ping is answered with an error", "reason", "storage_slow",
			"longest", longest.String(), "threshold", o.PingNG.String())
	case was && !slow:
		w.logger.Info("ping is answered again, the storage is fast enough", "longest", longest.String())
	}
}
