package node

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/flarekv/flare/agent/backup"
	"github.com/flarekv/flare/agent/storage"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

// defaultBackupDir is where backups are in the data directory, unless backup-dir
// says otherwise.
const defaultBackupDir = "backup"

// backupDir returns the directory that all backups are in.
func (s *Server) backupDir() string {
	if dir := s.live.Load().BackupDir; dir != "" {
		return dir
	}
	return filepath.Join(s.db.Dir(), defaultBackupDir)
}

// makeBackup copies the database into a new directory of the backup directory. One
// is made at a time: they would take each other's disk. report is called often; its
// error ends the work, of which nothing is left then.
func (s *Server) makeBackup(ctx context.Context, name string, rate int64, report func(backup.Progress) error) (b backup.Listed, err error) {
	if err := s.beginBackup(); err != nil {
		return b, err
	}
	defer s.endBackup()
	began := s.clock()
	root := s.backupDir()
	s.logger.Info("backup begins", "name", name, "backup_dir", root, "bytes_per_second", rate)
	m, err := backup.Create(ctx, s.db, backup.Request{Root: root, Name: name, Node: s.self, Version: s.version, Rate: rate}, report)
	err = workError(err)
	took := s.clock().Sub(began).String()
	if err != nil {
		s.logger.Warn("backup failed", "name", name, "backup_dir", root, "took", took, "reason", reasonOf(err), "error", err)
		return b, err
	}
	s.logger.Info("backup ended", "name", name, "backup_dir", root, "took", took, "lsn", m.LSN().String(), "history", m.History,
		"files", len(m.Files), "bytes", m.Bytes())
	return backup.Listed{Name: name, Path: filepath.Join(root, name), Complete: true, Manifest: m}, nil
}

// deleteBackup removes a backup, which must not be one that is being made.
func (s *Server) deleteBackup(name string) error {
	if err := s.beginBackup(); err != nil {
		return err
	}
	defer s.endBackup()
	if err := backup.Delete(s.backupDir(), name); err != nil {
		return workError(err)
	}
	s.logger.Info("backup deleted", "name", name, "backup_dir", s.backupDir())
	return nil
}

func (s *Server) beginBackup() error {
	if !s.backingUp.CompareAndSwap(false, true) {
		return refuseWork(reasonAlreadyRunning, "a backup is being made or deleted on this node")
	}
	return nil
}

func (s *Server) endBackup() {
	s.backups.forget()
	s.backingUp.Store(false)
}

// workError gives an error of package backup or of the storage its reason.
func workError(err error) error {
	var refused *backup.Error
	switch {
	case errors.As(err, &refused):
		return &workRefusal{refused.Reason, err}
	case errors.Is(err, storage.ErrDiskFull):
		return &workRefusal{"disk_full", err}
	case errors.Is(err, storage.ErrWriteFailed):
		return &workRefusal{"write_failed", err}
	}
	return err
}

// backupStatusAge is how old what is told of the backups may be.
const backupStatusAge = 10 * time.Second

// A backupStatus remembers what was last seen of the backups.
type backupStatus struct {
	mu   sync.Mutex
	at   time.Time
	last *agentv1.BackupStatus // never modified
}

// forget makes the next get look.
func (b *backupStatus) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = nil
}

func (b *backupStatus) get(root string, now time.Time) *agentv1.BackupStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last != nil && now.Sub(b.at) < backupStatusAge {
		return b.last
	}
	// A directory that cannot be read shows as one without backups, which is what
	// somebody has to be told.
	list, _ := backup.List(root)
	b.at, b.last = now, &agentv1.BackupStatus{}
	for _, l := range list {
		if !l.Complete {
			continue
		}
		b.last.Complete++
		b.last.Bytes += l.Manifest.Bytes()
		if at := l.Manifest.CreatedAt; b.last.NewestAt == nil || at.After(b.last.NewestAt.AsTime()) {
			b.last.NewestAt, b.last.Newest = timestamppb.New(at), l.Name
		}
	}
	return b.last
}

// backupStatus sums up the backups.
func (s *Server) backupStatus() *agentv1.BackupStatus {
	st := proto.CloneOf(s.backups.get(s.backupDir(), time.Now()))
	st.Running = s.backingUp.Load()
	return st
}

// MakeBackup implements NodeService.
func (v *service) MakeBackup(req *agentv1.MakeBackupRequest, stream grpc.ServerStreamingServer[agentv1.MakeBackupResponse]) error {
	ctx, cancel := v.untilStopped(stream.Context())
	defer cancel()
	var told time.Time
	rate := int64(min(req.GetBytesPerSecond(), 1<<62))
	name := cmp.Or(req.GetName(), backup.Name(v.s.clock(), v.s.db.Position().Partition))
	b, err := v.s.makeBackup(ctx, name, rate, func(p backup.Progress) error {
		if now := time.Now(); now.Sub(told) >= progressInterval {
			told = now
			return stream.Send(&agentv1.MakeBackupResponse{Progress: backupProgress(name, p)})
		}
		return nil
	})
	if err != nil {
		return rpcError(err)
	}
	n := len(b.Manifest.Files)
	bytes := b.Manifest.Bytes()
	last := backupProgress(b.Name, backup.Progress{FilesDone: n, Files: n, BytesDone: bytes, Bytes: bytes})
	last.Backup = backupProto(b)
	return stream.Send(&agentv1.MakeBackupResponse{Progress: last})
}

// ListBackups implements NodeService.
func (v *service) ListBackups(context.Context, *agentv1.ListBackupsRequest) (*agentv1.ListBackupsResponse, error) {
	root := v.s.backupDir()
	list, err := backup.List(root)
	if err != nil {
		return nil, rpcError(workError(err))
	}
	resp := &agentv1.ListBackupsResponse{Directory: root}
	for _, b := range list {
		resp.Backups = append(resp.Backups, backupProto(b))
	}
	return resp, nil
}

// DropBackup implements NodeService.
func (v *service) DropBackup(_ context.Context, req *agentv1.DropBackupRequest) (*agentv1.DropBackupResponse, error) {
	if err := v.s.deleteBackup(req.GetName()); err != nil {
		return nil, rpcError(err)
	}
	return &agentv1.DropBackupResponse{}, nil
}

// untilStopped is a context of a call that also ends with the server.
func (v *service) untilStopped(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.s.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

func backupProgress(name string, p backup.Progress) *agentv1.BackupProgress {
	m := &agentv1.BackupProgress{
		Name: name, FilesDone: uint32(p.FilesDone), FilesTotal: uint32(p.Files),
		BytesDone: p.BytesDone, BytesTotal: p.Bytes, BytesPerSecond: uint64(p.Rate),
	}
	if p.ETA >= 0 {
		m.Eta = durationpb.New(p.ETA.Round(time.Millisecond))
	}
	return m
}

func backupProto(b backup.Listed) *agentv1.Backup {
	m := &agentv1.Backup{Name: b.Name, Path: b.Path, Complete: b.Complete}
	if b.Complete {
		f := b.Manifest
		m.CreatedAt, m.Node, m.Version = timestamppb.New(f.CreatedAt), f.Node, f.Version
		m.Partition, m.Lsn, m.History = agentv1.OptionalPartition(f.Partition), lsnProto(f.LSN()), f.History
		m.Files, m.Bytes = uint32(len(f.Files)), f.Bytes()
	}
	return m
}
