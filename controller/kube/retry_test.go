package kube

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// tlsTimeout is an error as net/http has for a TLS handshake that takes too long.
type tlsTimeout struct{}

func (tlsTimeout) Error() string   { return "net/http: TLS handshake timeout" }
func (tlsTimeout) Timeout() bool   { return true }
func (tlsTimeout) Temporary() bool { return true }

func TestWhatIsRetried(t *testing.T) {
	sets := appsv1.Resource("statefulsets")
	get := func(err error) error { return &url.Error{Op: "Get", URL: "https://10.0.0.1", Err: err} }
	answer := func(code int) error {
		return apierrors.NewGenericServerResponse(code, "get", sets, "flare", "", 0, true)
	}
	for _, tt := range []struct {
		name string
		err  error
		want string // why it is retried; empty: it is not
	}{
		{"too many requests", apierrors.NewTooManyRequests("later", 1), RetryOverload},
		{"server timeout", apierrors.NewServerTimeout(sets, "get", 1), RetryServer},
		{"request timeout", apierrors.NewTimeoutError("slow", 1), RetryServer},
		{"unavailable", apierrors.NewServiceUnavailable("starting"), RetryServer},
		{"internal", apierrors.NewInternalError(errors.New("etcd has no leader")), RetryServer},
		{"bad gateway", answer(http.StatusBadGateway), RetryServer},
		{"gateway timeout", answer(http.StatusGatewayTimeout), RetryServer},
		{"refused", get(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), RetryConnection},
		{"reset", get(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), RetryConnection},
		{"no route", get(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}), RetryConnection},
		{"ended", get(io.EOF), RetryConnection},
		{"ended in an answer", get(io.ErrUnexpectedEOF), RetryConnection},
		{"http2", get(errors.New("http2: client connection lost")), RetryConnection},
		{"TLS handshake", get(tlsTimeout{}), RetryConnection},
		{"lost race", fmt.Errorf("write: %w", raced{errors.New("changed")}), RetryConflict},

		{"unauthorized", apierrors.NewUnauthorized("no token"), ""},
		{"forbidden", apierrors.NewForbidden(sets, "flare", errors.New("no role")), ""},
		{"not found", apierrors.NewNotFound(sets, "flare"), ""},
		{"conflict", apierrors.NewConflict(sets, "flare", errors.New("changed")), ""},
		{"exists", apierrors.NewAlreadyExists(sets, "flare"), ""},
		{"invalid", apierrors.NewInvalid(schema.GroupKind{Kind: "StatefulSet"}, "flare", nil), ""},
		{"bad request", apierrors.NewBadRequest("no JSON"), ""},
		{"gone", apierrors.NewResourceExpired("too old"), ""},
		{"method", apierrors.NewMethodNotSupported(sets, "patch"), ""},
		{"too large", apierrors.NewRequestEntityTooLargeError("3 MiB"), ""},
		{"not implemented", answer(http.StatusNotImplemented), ""},
		{"unknown authority", get(x509.UnknownAuthorityError{}), ""},
		{"cancelled", get(context.Canceled), ""},
		{"deadline", get(context.DeadlineExceeded), ""},
		{"something else", errors.New("no"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var reasons []string
				attempts := 0
				begun := time.Now()
				err := retry(t.Context(), "do it", func(reason string) { reasons = append(reasons, reason) }, func(context.Context) error {
					if attempts++; attempts < 4 {
						return tt.err
					}
					return nil
				})
				if tt.want == "" {
					if attempts != 1 || !errors.Is(err, tt.err) || !strings.HasPrefix(err.Error(), "do it: ") || time.Since(begun) > 0 {
						t.Errorf("%d attempts in %v, %v; want one", attempts, time.Since(begun), err)
					}
					return
				}
				if err != nil || !slices.Equal(reasons, []string{tt.want, tt.want, tt.want}) {
					t.Errorf("%v, retried because of %v, want three times %s", err, reasons, tt.want)
				}
				// 50, 100 and 200 ms, each with up to half of itself more, or what the server asks for.
				low, high := 350*time.Millisecond, 525*time.Millisecond
				if after, ok := apierrors.SuggestsClientDelay(tt.err); ok {
					low, high = 3*time.Duration(after)*time.Second, 3*time.Duration(after)*time.Second
				}
				if d := time.Since(begun); d < low || d > high {
					t.Errorf("it took %v, want %v to %v", d, low, high)
				}
			})
		})
	}
}

// An outage that outlasts the caller's patience ends with the reason of the outage.
func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		attempts := 0
		err := retry(ctx, "do it", nil, func(context.Context) error {
			attempts++
			return apierrors.NewServiceUnavailable("starting")
		})
		if !apierrors.IsServiceUnavailable(err) || !strings.HasPrefix(err.Error(), "do it: "+string(metav1.StatusReasonServiceUnavailable)) {
			t.Errorf("%v", err)
		}
		// Never more than 1.5 s apart, never less than 50 ms.
		if attempts < 6 || attempts > 12 {
			t.Errorf("%d attempts in 5 s", attempts)
		}
	})
}
