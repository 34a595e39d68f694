package sidecar

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

const (
	// reportInterval is the longest time between two reports.
	reportInterval = time.Second
	// confirmTimeout is the silence of the controller after which the link is given
	// up. It answers every report, so this finds one whose machine vanished sooner
	// than any keepalive of gRPC (which is not allowed below 10 s) or of TCP.
	confirmTimeout = 3 * time.Second
	// reattachMin and reattachMax bound the wait before the controller is tried again.
	reattachMin = 50 * time.Millisecond
	reattachMax = 400 * time.Millisecond
	// farewellTimeout bounds the wait for the controller to take the last report.
	farewellTimeout = 500 * time.Millisecond
	// complainInterval is the time between two log lines about the same outage.
	complainInterval = 30 * time.Second
)

var errNoConfirmation = errors.New("the controller does not answer")

// linkController keeps a link to the leading controller. Which one leads is found
// by trying: its address leads to whichever process leads now, and one that does
// not lead any more says so.
func (a *Agent) linkController(ctx context.Context) {
	wait := reattachMin
	var complained time.Time
	for ctx.Err() == nil {
		confirmed, err := a.attach(ctx)
		if ctx.Err() != nil {
			return
		}
		if confirmed {
			a.observe(ControllerLink{time.Now(), false})
			wait, complained = reattachMin, time.Time{}
		}
		if time.Since(complained) > complainInterval {
			complained = time.Now()
			a.log.Warn("no link to the controller", "address", a.set.Controller, "error", err)
		}
		if !pause(ctx, wait/2+rand.N(wait/2)) {
			return
		}
		wait = min(2*wait, reattachMax)
	}
}

// attach is one link, from dialling to its end. confirmed tells whether the
// controller took a report.
func (a *Agent) attach(ctx context.Context) (confirmed bool, err error) {
	// A connection of its own for each link, and passthrough instead of gRPC's
	// resolver: the name is looked up now, and not when a cache lets it.
	conn, err := grpc.NewClient("passthrough:///"+a.set.Controller,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: a.confirm}),
		grpc.WithNoProxy())
	if err != nil {
		return false, err
	}
	defer conn.Close()

	// The stream outlives ctx for the last report.
	link, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	defer fail(nil)
	silent := time.AfterFunc(a.confirm, func() { fail(errNoConfirmation) })
	defer silent.Stop()
	opened := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		select {
		case <-opened:
		default:
			fail(ctx.Err())
		}
	})()

	stream, err := controllerv1.NewAgentLinkServiceClient(conn).Attach(link)
	if err != nil {
		return false, because(link, err)
	}
	close(opened)

	// Only this goroutine receives, only this function sends.
	first, over := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			resp, err := stream.Recv()
			if err != nil {
				over <- err
				fail(err)
				return
			}
			silent.Reset(a.confirm)
			if l := resp.GetLease(); l != nil {
				a.leases.put(l)
			}
			if o := resp.GetOrder(); o != nil {
				a.obey(ctx, o)
			}
			if n == 0 {
				close(first)
				a.log.Info("link to the controller is up", "address", a.set.Controller)
				a.observe(ControllerLink{time.Now(), true})
			}
		}
	}()

	sending, stop := context.WithCancel(link)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	sendErr := a.follow(sending, always(reportInterval), func(st *agentv1.AgentStatus) error {
		return stream.Send(&controllerv1.AttachRequest{Status: st})
	})
	if sendErr == nil && ctx.Err() != nil && stream.CloseSend() == nil {
		// The controller ends the stream after it has taken everything that was sent.
		bye := time.AfterFunc(farewellTimeout, func() { fail(ctx.Err()) })
		defer bye.Stop()
	}
	if sendErr != nil && !errors.Is(sendErr, io.EOF) {
		fail(sendErr)
	}
	err = <-over
	select {
	case <-first:
		confirmed = true
	default:
	}
	return confirmed, because(link, err)
}

// because prefers the reason for which a link was ended over the error that
// followed from it.
func because(link context.Context, err error) error {
	if cause := context.Cause(link); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}
