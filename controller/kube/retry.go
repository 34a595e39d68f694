package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// Distances of attempts: they double from first to last, each with up to half of
// itself added so that controllers do not come in step.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
)

// retry is the function of that name with what the controller counts.
func (c *Config) retry(ctx context.Context, what string, f func(context.Context) error) error {
	return retry(ctx, what, c.Retried, f)
}

// retry calls f until it succeeds, fails for a reason that the next attempt
// would not cure, or ctx ends. what names the request in the error. retried, if not
// nil, is told why each further attempt is made.
func retry(ctx context.Context, what string, retried func(reason string), f func(context.Context) error) error {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := f(ctx)
		if err == nil {
			return nil
		}
		reason, again := transient(err)
		if !again {
			return described(what, err)
		}
		pause := wait + rand.N(wait/2)
		if after, ok := apierrors.SuggestsClientDelay(err); ok {
			pause = max(pause, time.Duration(after)*time.Second)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return described(what, err)
		}
		if retried != nil {
			retried(reason)
		}
	}
}

// described puts the API server's machine-readable reason before its words.
func described(what string, err error) error {
	if reason := apierrors.ReasonForError(err); reason != "" {
		return fmt.Errorf("%s: %s: %w", what, reason, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Why a request is made again.
const (
	RetryConnection = "connection" // the API server was not reached, or did not answer
	RetryOverload   = "overload"   // it asks to come later
	RetryServer     = "server"     // it failed
	RetryConflict   = "lost_race"  // somebody else wrote meanwhile
)

// raced is a lost race: what was read is to be read again.
type raced struct{ error }

func (r raced) Unwrap() error { return r.error }

// transient tells whether the same request may succeed a moment later, and why it
// did not now. What the API server has judged (no permission, no such object, an
// invalid one, a conflict) is not asked again: somebody has to decide anew.
func transient(err error) (reason string, again bool) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return "", false
	}
	if r := (raced{}); errors.As(err, &r) {
		return RetryConflict, true
	}
	if s := apierrors.APIStatus(nil); errors.As(err, &s) {
		switch s.Status().Code {
		case http.StatusTooManyRequests:
			return RetryOverload, true
		case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return RetryServer, true
		}
		return "", false
	}
	if utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) ||
		utilnet.IsHTTP2ConnectionLost(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		return RetryConnection, true
	}
	if n := net.Error(nil); errors.As(err, &n) && n.Timeout() {
		return RetryConnection, true // the TLS handshake, for one
	}
	op := (*net.OpError)(nil)
	return RetryConnection, errors.As(err, &op)
}
