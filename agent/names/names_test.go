package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A service is a name service that can be lost.
type service struct {
	mu    sync.Mutex
	addrs map[string]string
	lost  bool  // it answers nothing
	err   error // it answers only this
	asked []string
}

func (s *service) lookup(ctx context.Context, host string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, host)
	if s.lost {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return nil, ctx.Err()
	}
	if s.err != nil {
		return nil, s.err
	}
	if a := s.addrs[host]; a != "" {
		return []string{a}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (s *service) set(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// resolve asks for a host as a dial with a second does, and tells how long it took.
func resolve(t *testing.T, b *Book, host string) (addr string, took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	addrs, err := b.Resolve(ctx, host)
	if err != nil {
		return err.Error(), time.Since(began)
	}
	return fmt.Sprint(addrs), time.Since(began)
}

// TestNameServiceLost: an address from before serves as long as the service does not
// answer, and no longer; nothing waits for it but for a moment.
func TestNameServiceLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{addrs: map[string]string{"a": "10.0.0.1"}}
		b := &Book{Lookup: s.lookup, Logger: slog.New(slog.DiscardHandler)}
		check := func(host, want string, within time.Duration) {
			t.Helper()
			if got, took := resolve(t, b, host); got != want || took > within {
				t.Errorf("%s is %s after %v, want %s within %v", host, got, took, want, within)
			}
		}
		check("a", "[10.0.0.1]", 0)
		check("10.9.9.9", "[10.9.9.9]", 0)
		check("::1", "[::1]", 0)

		s.set(func() { s.lost = true })
		check("a", "[10.0.0.1]", patience)
		check("b", "lookup b: context deadline exceeded", time.Second)
		time.Sleep(lookupTimeout)
		s.set(func() { s.lost, s.err = false, errors.New("server misbehaving") })
		check("a", "[10.0.0.1]", 0)
		check("b", "server misbehaving", 0)

		s.set(func() { s.err, s.addrs = nil, map[string]string{"a": "10.0.0.2"} })
		check("a", "[10.0.0.2]", 0)
		s.set(func() { s.addrs = nil })
		check("a", "lookup a: no such host", 0)
		s.set(func() { s.err = errors.New("server misbehaving") })
		check("a", "server misbehaving", 0) // what it has denied is not used again
	})
}

// TestNamesAreKept: names are looked up before anybody dials them, and again one at a
// time; and a service that is lost is asked once at a time.
func TestNamesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{addrs: map[string]string{"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}}
		b := &Book{Lookup: s.lookup, Logger: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		wanted, changed := []string{"a", "b"}, make(chan struct{})
		var mu sync.Mutex
		kept := make(chan struct{})
		go func() {
			defer close(kept)
			b.Keep(ctx, func() []string { mu.Lock(); defer mu.Unlock(); return wanted },
				func() <-chan struct{} { mu.Lock(); defer mu.Unlock(); return changed })
		}()
		asked := func(want ...string) {
			t.Helper()
			synctest.Wait()
			s.set(func() {
				if !slices.Equal(s.asked, want) {
					t.Errorf("asked for %v, want %v", s.asked, want)
				}
				s.asked = nil
			})
		}
		asked("a", "b")
		mu.Lock()
		wanted = []string{"a", "b", "c"}
		close(changed)
		changed = make(chan struct{})
		mu.Unlock()
		asked("c")
		s.set(func() { s.addrs["a"] = "10.0.0.4" })
		time.Sleep(2*refreshPause + time.Second)
		asked("a", "b")

		s.set(func() { s.lost = true })
		var dials sync.WaitGroup
		for range 50 {
			dials.Go(func() {
				if got, took := resolve(t, b, "a"); got != "[10.0.0.4]" || took > patience {
					t.Errorf("a is %s after %v", got, took)
				}
			})
		}
		dials.Wait()
		asked("a")
		time.Sleep(forgetAfter)
		for _, host := range []string{"a", "b", "c"} {
			if b.of(host) == nil {
				t.Errorf("%s is forgotten while the service is lost", host)
			}
		}
		stop()
		<-kept
		time.Sleep(forgetAfter + lookupTimeout + time.Second)
		b.retain(nil)
		if len(b.known) > 0 {
			t.Errorf("kept though nobody wants them: %v", b.known)
		}
	})
}

// TestDialTriesEveryAddress of a name, the next when one does not accept.
func TestDialTriesEveryAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	b := &Book{Lookup: func(context.Context, string) ([]string, error) {
		return []string{"127.0.0.2", "127.0.0.1"}, nil // only the second listens
	}}
	conn, err := b.Dial(t.Context(), net.JoinHostPort("node", port))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.Close()
	if _, err = b.Dial(t.Context(), net.JoinHostPort("node", port)); err == nil {
		t.Error("connected to nobody")
	}
	if _, err = b.Dial(t.Context(), "node"); err == nil {
		t.Error("dialled without a port")
	}
}
