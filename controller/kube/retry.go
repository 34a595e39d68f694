package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
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

// retry calls f until it succeeds, fails for a reason that the next attempt
// would not cure, or ctx ends. what names the request in the error.
func retry(ctx context.Context, what string, f func(context.Context) error) error {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if !transient(err) {
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
	}
}

// described puts the API server's machine-readable reason before its words.
func described(what string, err error) error {
	if reason := apierrors.ReasonForError(err); reason != "" {
		return fmt.Errorf("%s: %s: %w", what, reason, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// transient tells whether the same request may succeed a moment later.
func transient(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) {
		return true
	}
	if utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) ||
		utilnet.IsHTTP2ConnectionLost(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	var op *net.OpError
	return errors.As(err, &op)
}
