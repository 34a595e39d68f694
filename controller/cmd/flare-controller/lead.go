package main

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/index"
	"github.com/flarekv/flare/controller/runtime"
)

// lead is one reign: from the loading of the durable state to the end of ctx, of
// the right to write, or of the index server.
//
// leading tells whether no other controller can lead yet; nil where there is no
// other.
func (p *program) lead(ctx context.Context, backend runtime.Backend, leading func() bool) error {
	ln, err := net.Listen("tcp", p.options.index)
	if err != nil {
		return fmt.Errorf("--index: %w", err)
	}
	defer ln.Close()

	var rt *runtime.Runtime
	nodes := index.NewBroadcaster(index.BroadcasterConfig{Observe: func(in core.Input) { rt.Observe(in) }, Logger: p.log})
	defer nodes.Close()
	rt = runtime.New(runtime.Config{Backend: backend, Broadcaster: nodes, Grant: p.admin.Grant, Order: p.admin.Order, Leading: leading,
		Logger: p.log, Trace: p.admin.Metrics().Trace, Recorder: p.recorder, Took: p.admin.Metrics().StepTook})
	config := index.ServerConfig{Cluster: rt, Version: version, Logger: p.log, Nodes: nodes, Refused: p.admin.Metrics().IndexRefused}
	if p.options.standalone != "" {
		config.ConfigPath, config.DataDir = p.options.standalone, p.options.stateDir
	}
	server := index.NewServer(config)

	g, reign := errgroup.WithContext(ctx)
	reign, end := context.WithCancel(reign)
	defer end()
	g.Go(func() error {
		defer end()
		return rt.Run(reign)
	})
	g.Go(func() error {
		select {
		case <-rt.Loaded():
		case <-reign.Done():
			return nil
		}
		health := p.admin.Health()
		release := p.admin.Lead(rt)
		defer release()
		health.SetIndexListening(true)
		defer health.SetIndexListening(false)
		health.SetLeader(true)
		defer health.SetLeader(false)
		p.log.Info("leading", "index", ln.Addr().String())
		return server.Serve(reign, ln)
	})
	return g.Wait()
}
