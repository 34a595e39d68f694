package node

import (
	"log/slog"
	"sync"
	"time"
)

// logInterval is the least time between two equal messages about things that a
// client, or a broken disk, can cause as often as it likes.
const logInterval = time.Second

// A limitedLog passes each message on at most once per logInterval and says how
// many it left out.
type limitedLog struct {
	mu   sync.Mutex
	last map[string]*limitedEntry
}

type limitedEntry struct {
	at      time.Time
	dropped int
}

func (l *limitedLog) warn(logger *slog.Logger, msg string, args ...any) {
	now := time.Now()
	l.mu.Lock()
	if l.last == nil {
		l.last = map[string]*limitedEntry{}
	}
	e := l.last[msg]
	if e == nil {
		e = &limitedEntry{}
		l.last[msg] = e
	}
	if now.Sub(e.at) < logInterval {
		e.dropped++
		l.mu.Unlock()
		return
	}
	dropped := e.dropped
	e.at, e.dropped = now, 0
	l.mu.Unlock()
	if dropped > 0 {
		args = append(args, "left_out", dropped)
	}
	logger.Warn(msg, args...)
}
