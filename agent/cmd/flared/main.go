// Command flared is the storage node: it serves the memcached text protocol and
// flare's node protocol. flared restore puts a backup in its place; it has exit
// codes of its own.
//
// Exit codes: 0 after leaving in good order, 1 when something failed at run
// time, 2 when the command line or the configuration file is wrong.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/flarekv/flare/agent/node"
	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/storage"
)

// version is set by the build with -ldflags "-X main.version=...".
var version = "2.0.0-dev"

const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "restore" {
		return restore(args[1:], stdout, stderr)
	}
	fs := flag.NewFlagSet("flared", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the list of all options would hide the message
	var config, pid string
	var showVersion bool
	for _, name := range []string{"config", "f"} {
		fs.StringVar(&config, name, "", "read options from `file` (name = value); the command line wins")
	}
	for _, name := range []string{"pid", "p"} {
		fs.StringVar(&pid, name, "", "write the process id to `file` (default <data-dir>/"+defaultPidFile+")")
	}
	for _, name := range []string{"version", "v"} {
		fs.BoolVar(&showVersion, name, false, "print the version and exit")
	}
	for _, name := range []string{"stderr", "s"} {
		fs.Bool(name, true, "log to the standard error output, as always")
	}
	line := options.Flags(fs)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "usage: flared --data-dir DIR --index-servers HOST:PORT[,HOST:PORT...] [--config FILE] [options]\n"+
			"       flared restore --help\n\n")
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flared: %v; flared --help lists the options\n", err)
		return exitUsage
	}
	if showVersion {
		fmt.Fprintf(stdout, "flared %s\n", version)
		return 0
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "flared: unexpected argument %q: options begin with --\n", fs.Arg(0))
		return exitUsage
	}

	var level slog.LevelVar
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: &level}))
	settings, opts, err := node.LoadSettings(config, line, logger)
	if err != nil {
		fmt.Fprintf(stderr, "flared: %v\n", err)
		return exitUsage
	}
	if opts.ServerName == "" {
		if opts.ServerName, err = os.Hostname(); err != nil {
			fmt.Fprintf(stderr, "flared: host name: %v; give --server-name\n", err)
			return exitUsage
		}
	}
	level.Set(opts.LogLevel)
	if err := serve(opts, settings, cmp.Or(pid, filepath.Join(opts.DataDir, defaultPidFile)), &level, logger); err != nil {
		logger.Error("flared failed", "error", err)
		return exitFailure
	}
	return 0
}

// serve runs the node until a signal ends it.
func serve(opts options.Options, settings *node.Settings, pid string, level *slog.LevelVar, logger *slog.Logger) (err error) {
	// Signals are taken from here on, so that none ends the process half way.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	logger.Info("starting", "version", version, "node", opts.ServerName+":"+strconv.Itoa(opts.ServerPort),
		"data_dir", opts.DataDir, "index_servers", opts.Indexes())
	listener, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(opts.ServerPort)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close()
	if err := setBackLog(listener, opts.BackLog); err != nil {
		return fmt.Errorf("listen: back-log %d: %w", opts.BackLog, err)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent(opts.RecordCacheSizeMB << 20))
	}
	db, err := openDatabase(opts, signals, logger)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer func() {
		if cerr := db.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close database: %w", cerr)
		}
		logger.Info("stopped")
	}()
	removePid, err := writePid(pid)
	if err != nil {
		return fmt.Errorf("process id file: %w", err)
	}
	defer removePid()

	server, err := node.New(node.Config{
		Options: opts, Settings: settings, DB: db, Listener: listener,
		Version: version, LogLevel: level, Logger: logger,
	})
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	var handler sync.WaitGroup
	defer handler.Wait()
	done := make(chan struct{})
	defer close(done)
	handler.Go(func() {
		leaving := false
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				switch {
				case sig == syscall.SIGHUP:
					if err := server.Reload(); err != nil {
						logger.Error("configuration was not reloaded, the former one stays in force", "error", err)
					}
				case leaving:
					logger.Warn("stopping at once", "signal", sig.String())
					server.Abort()
				default:
					logger.Info("stopping", "signal", sig.String())
					leaving = true
					leave()
				}
			}
		}
	})
	return server.Run(ctx)
}

// garbagePercent returns the share of live memory that may become garbage before
// it is collected. The cache of records is live memory in which there is nothing
// to follow, so that a collection costs the same however large it is; but by
// default as much garbage as that would pile up.
func garbagePercent(cache int64) int {
	const garbage = 64 << 20 // bytes, about
	return max(3, int(100*garbage/(cache+garbage)))
}

const (
	// lockPatience is how long a data directory may stay in use by another process:
	// a pod that was deleted without grace is still saying good-bye when its
	// successor starts on the same volume.
	lockPatience = time.Minute
	// lockRetry is how often it is tried, lockLog how often that is told.
	lockRetry = 100 * time.Millisecond
	lockLog   = 5 * time.Second
)

// openDatabase opens the data directory, waiting for another process that is
// about to let go of it.
func openDatabase(opts options.Options, signals <-chan os.Signal, logger *slog.Logger) (*storage.DB, error) {
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	began := time.Now()
	var told time.Time
	for {
		db, err := storage.Open(storage.Options{
			Dir:          opts.DataDir,
			SyncWrites:   opts.RocksDB.SyncWrites,
			WALTTL:       time.Duration(opts.RocksDB.WALTTLSeconds) * time.Second,
			WALSizeLimit: opts.RocksDB.WALSizeLimitMB << 20,

			WALReplicaLimit: opts.RocksDB.WALReplicaLimitMB << 20,
			MaxBatchBytes:   int(opts.RocksDB.WALMaxBatchBytes),
			RecordCache:     opts.RecordCacheSizeMB << 20,
			BlockCache:      opts.BlockCacheSizeMB << 20,
			Tombstones:      opts.StorageCacheSize,
			Tuning:          opts.EngineValues(),
			Logger:          logger,
		})
		if !errors.Is(err, storage.ErrLocked) || time.Since(began) > lockPatience {
			return db, err
		}
		if time.Since(told) > lockLog {
			told = time.Now()
			logger.Warn("waiting for another process to let go of the data directory", "data_dir", opts.DataDir, "error", err)
		}
		select {
		case <-retry.C:
		case s := <-signals:
			if s != syscall.SIGHUP {
				return nil, fmt.Errorf("%w, and %v came while waiting for it", err, s)
			}
		}
	}
}
