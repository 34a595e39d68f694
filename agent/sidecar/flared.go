package sidecar

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

const (
	// redialMin and redialMax bound the wait before the socket is tried again.
	redialMin = 10 * time.Millisecond
	redialMax = 200 * time.Millisecond
	// redialTimeout is how long a call waits for a flared that is not known to be
	// there: until its socket was tried again, and answered.
	redialTimeout = 500 * time.Millisecond
	// applyTimeout bounds one ApplyOptions call.
	applyTimeout = 5 * time.Second
	// askTimeout bounds a question about options, which somebody waits for.
	askTimeout = 3 * time.Second
)

// dialFlared returns a connection that is made, and made again, when it is used.
func dialFlared(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialMin, Multiplier: 1.6, Jitter: 0.1, MaxDelay: redialMax},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithNoProxy())
	if err != nil {
		return nil, fmt.Errorf("flared's socket %s: %w", socket, err)
	}
	return conn, nil
}

// watchFlared keeps flared's status stream open. The kernel ends it in the
// moment in which the process ends, whatever way it went.
func (a *Agent) watchFlared(ctx context.Context, node agentv1.NodeServiceClient) {
	wait := redialMin
	for ctx.Err() == nil {
		heard, err := a.watchOnce(ctx, node)
		if ctx.Err() != nil {
			return
		}
		if heard {
			a.observe(FlaredLost{time.Now()})
			wait = redialMin
		}
		a.log.Debug("flared's status stream ended", "error", err)
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, redialMax)
	}
}

func (a *Agent) watchOnce(ctx context.Context, node agentv1.NodeServiceClient) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := node.WatchNode(ctx, &agentv1.WatchNodeRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return heard, err
		}
		if resp.GetStatus() == nil {
			continue
		}
		heard = true
		a.observe(FlaredStatus{time.Now(), resp.GetStatus()})
	}
}

// applyFile sends a file to flared and takes the answer in.
func (a *Agent) applyFile(ctx context.Context, node agentv1.NodeServiceClient, act Apply) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	resp, err := node.ApplyOptions(ctx, &agentv1.ApplyOptionsRequest{Text: act.Text})
	done := ApplyDone{At: time.Now(), Attempt: act.Attempt, Response: resp}
	if err != nil {
		done.Err = status.Convert(err).Message()
	}
	a.observe(done)
}
