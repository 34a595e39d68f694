// Package names turns the names of other nodes into addresses, also while the name
// service does not answer: it is often lost in the same moment as the node whose
// successor everybody looks for.
package names

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// patience is how long a dial waits for the name service when it knows an address
	// from before. One that works answers within a few milliseconds.
	patience = 100 * time.Millisecond
	// lookupTimeout bounds one question to the name service, longer than the five
	// seconds after which a resolver asks its next server.
	lookupTimeout = 8 * time.Second
	// refreshPause is the time between two names that are looked up anew in advance.
	refreshPause = 5 * time.Second
	// forgetAfter is how long a name is kept that nobody asks for.
	forgetAfter = time.Hour
	// logInterval is the least time between two log lines about a service that does not answer.
	logInterval = time.Minute
)

// A Book dials nodes by their names. It remembers the last addresses of each, and uses
// them when the name service fails or is slow; a service that says that there is no such
// name is believed. The zero value is ready to use.
type Book struct {
	// Lookup asks the name service; nil for that of the machine.
	Lookup func(ctx context.Context, host string) ([]string, error)
	Logger *slog.Logger // nil for the default one

	asking singleflight.Group

	mu     sync.Mutex
	known  map[string]entry
	logged time.Time
}

type entry struct {
	addrs []string  // of the last answer, never empty
	at    time.Time // when it was last asked for
}

// Dial connects to a node, host:port, at the first of its addresses that accepts. ctx
// bounds all of it; each address gets an equal part of what is left.
func (b *Book) Dial(ctx context.Context, node string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(node)
	if err != nil {
		return nil, err
	}
	addrs, err := b.Resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i, addr := range addrs {
		var dialer net.Dialer
		if end, ok := ctx.Deadline(); ok {
			dialer.Timeout = time.Until(end) / time.Duration(len(addrs)-i)
		}
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Resolve returns the addresses of a host: what the name service says now, or what it
// said last if it fails or takes longer than a dial can wait.
func (b *Book) Resolve(ctx context.Context, host string) ([]string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{host}, nil
	}
	before := b.of(host)
	var late <-chan time.Time
	if before != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	// Whoever asks for a name that is being asked for shares the answer: a service that
	// is gone is not asked by every connection.
	answer := b.asking.DoChan(host, func() (any, error) { return b.ask(host) })
	select {
	case a := <-answer:
		var missing *net.DNSError
		switch {
		case a.Err == nil:
			return a.Val.([]string), nil
		case before == nil, errors.As(a.Err, &missing) && missing.IsNotFound:
			return nil, a.Err
		}
		b.tell(host, before, a.Err)
		return before, nil
	case <-late:
		b.tell(host, before, context.DeadlineExceeded)
		return before, nil
	case <-ctx.Done():
		return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, IsTimeout: true}
	}
}

// Keep looks names up in advance, so that a node is found that was never dialled: at
// once what the book lacks, then one name after another, the one that was asked for
// longest ago. names returns those that are wanted now; changed gives a channel that is
// closed when there may be others. It returns when ctx ends.
func (b *Book) Keep(ctx context.Context, names func() []string, changed func() <-chan struct{}) {
	tick := time.NewTicker(refreshPause)
	defer tick.Stop()
	for {
		wake := changed()
		wanted := names()
		b.retain(wanted)
		for _, host := range wanted {
			if b.of(host) == nil {
				b.refresh(ctx, host)
			}
		}
		select {
		case <-wake:
		case <-tick.C:
			if host := b.oldest(wanted); host != "" {
				b.refresh(ctx, host)
			}
		case <-ctx.Done():
			return
		}
	}
}

// refresh looks a name up, and waits no longer than one that is lost may delay the next.
func (b *Book) refresh(ctx context.Context, host string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	b.Resolve(ctx, host)
}

// ask asks the name service and keeps what it says.
func (b *Book) ask(host string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	lookup := b.Lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	addrs, err := lookup(ctx, host)
	var missing *net.DNSError
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil && len(addrs) > 0:
		if b.known == nil {
			b.known = map[string]entry{}
		}
		b.known[host] = entry{slices.Clone(addrs), time.Now()}
	case errors.As(err, &missing) && missing.IsNotFound:
		delete(b.known, host)
	default:
		// The next one in turn is another, and what is known stays.
		if e, ok := b.known[host]; ok {
			b.known[host] = entry{e.addrs, time.Now()}
		}
	}
	return addrs, err
}

// of returns what is known of a host, nil if nothing is.
func (b *Book) of(host string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known[host].addrs
}

// oldest returns the one of the wanted hosts that was asked for longest ago.
func (b *Book) oldest(wanted []string) (host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var at time.Time
	for _, name := range wanted {
		if e, ok := b.known[name]; ok && (host == "" || e.at.Before(at)) {
			host, at = name, e.at
		}
	}
	return host
}

// retain forgets what is not wanted and was not asked for in a long time.
func (b *Book) retain(wanted []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for host, e := range b.known {
		if time.Since(e.at) > forgetAfter && !slices.Contains(wanted, host) {
			delete(b.known, host)
		}
	}
}

// tell logs, now and then, that addresses from before are used.
func (b *Book) tell(host string, addrs []string, err error) {
	now := time.Now()
	b.mu.Lock()
	quiet := !b.logged.IsZero() && now.Sub(b.logged) < logInterval
	if !quiet {
		b.logged = now
	}
	b.mu.Unlock()
	if quiet {
		return
	}
	logger := b.Logger
	if logger == nil {
		logger = slog.Default()
	}
	logger.Warn("the name service does not answer, using the last address", "reason", "name_service_lost", "name", host,
		"addresses", addrs, "error", err)
}
