package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	provisionerName = "lab.flare/volume"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	selectedNode    = "volume.kubernetes.io/selected-node"

	// minVolume is the least that ext4 can be made in with room to spare.
	minVolume = 8 << 20
)

// provisioner makes a volume for every claim the scheduler has given a node:
// an ext4 filesystem of the claimed size in a sparse file, mounted below the
// node's directory. A filesystem of its own makes "disk full" something a
// test can cause for one pod, and only that pod.
//
// It mounts in the machine's mount namespace. The directory is a shared mount,
// so that the mount appears in the nodes' namespaces too and is still there
// when a node has died and comes back.
type provisioner struct {
	client  kubernetes.Interface
	classes func(name string) (*storagev1.StorageClass, error)
	dir     string
	log     *slog.Logger
}

// runProvisioner is the main of "volume-provisioner KUBECONFIG DIR".
func runProvisioner() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: volume-provisioner KUBECONFIG DIR")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := provision(ctx, os.Args[1], os.Args[2], log); err != nil {
		log.Error("provisioner ended", "err", err)
		os.Exit(1)
	}
}

func provision(ctx context.Context, kubeconfig, dir string, log *slog.Logger) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Burst = 100, 200
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	// The resync is the retry: whatever failed is seen again.
	factory := informers.NewSharedInformerFactory(client, 5*time.Second)
	classes := factory.Storage().V1().StorageClasses()
	p := &provisioner{client: client, classes: classes.Lister().Get, dir: dir, log: log}
	classes.Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	react(ctx, factory.Core().V1().PersistentVolumeClaims().Informer(), log, "provision", p.claim)
	react(ctx, factory.Core().V1().PersistentVolumes().Informer(), log, "delete", p.volume)
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}

// react calls do with every object that appears or changes, one at a time.
func react[T metav1.Object](ctx context.Context, informer cache.SharedIndexInformer, log *slog.Logger, what string, do func(context.Context, T) error) {
	on := func(obj any) {
		if o, ok := obj.(T); ok {
			if err := do(ctx, o); err != nil {
				log.Error(what+" failed, will try again", "name", o.GetName(), "err", err)
			}
		}
	}
	informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    on,
		UpdateFunc: func(_, now any) { on(now) },
	})
}

func (p *provisioner) claim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	node := claim.Annotations[selectedNode]
	if node == "" || claim.Spec.VolumeName != "" || claim.Spec.StorageClassName == nil || claim.DeletionTimestamp != nil {
		return nil
	}
	class, err := p.classes(*claim.Spec.StorageClassName)
	if apierrors.IsNotFound(err) || err == nil && class.Provisioner != provisionerName {
		return nil
	}
	if err != nil {
		return err
	}
	name := "pvc-" + string(claim.UID)
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	mountPoint := filepath.Join(p.dir, node, name)
	if err := makeVolume(ctx, mountPoint, max(size.Value(), minVolume)); err != nil {
		return err
	}
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	onNode := corev1.NodeSelectorRequirement{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisionerName}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName:              class.Name,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: size},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: policy,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: mountPoint}},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{onNode}}},
			}},
		},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err == nil {
		p.log.Info("provisioned", "claim", claim.Namespace+"/"+claim.Name, "node", node, "volume", name, "size", size.String())
	}
	return err
}

func (p *provisioner) volume(ctx context.Context, pv *corev1.PersistentVolume) error {
	if pv.Annotations[provisionedBy] != provisionerName || pv.Status.Phase != corev1.VolumeReleased ||
		pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.Local == nil {
		return nil
	}
	if err := removeVolume(pv.Spec.Local.Path); err != nil {
		return err
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		p.log.Info("deleted", "volume", pv.Name)
	}
	return err
}

// makeVolume leaves a filesystem of size bytes mounted at mountPoint, kept in
// mountPoint + ".img". It may be called again after any failure.
func makeVolume(ctx context.Context, mountPoint string, size int64) error {
	if mounted, err := isMountPoint(mountPoint); err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(mountPoint, 0o755); err != nil {
		return err
	}
	image := mountPoint + ".img"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err != nil {
		return fmt.Errorf("size %s: %w", image, err)
	}
	// No journal and no reserve: the machine under the lab does not crash,
	// and the claimed size should be usable. Untouched inode tables are never
	// written (noinit_itable), which keeps the file sparse.
	if err := run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-i", "32768", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", image); err != nil {
		return err
	}
	if err := run(ctx, "mount", "-t", "ext4", "-o", "loop,noatime,noinit_itable", image, mountPoint); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(mountPoint, "lost+found")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// As any volume of a class without fsGroup support would be: the pod's
	// user is unknown here.
	return os.Chmod(mountPoint, 0o777)
}

// removeVolume detaches rather than unmounts: a pod that is going away may
// still hold the filesystem, and the loop device goes with its last user.
func removeVolume(mountPoint string) error {
	mounted, err := isMountPoint(mountPoint)
	if err != nil {
		return err
	}
	if mounted {
		if err := syscall.Unmount(mountPoint, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", mountPoint, err)
		}
	}
	for _, path := range []string{mountPoint, mountPoint + ".img"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isMountPoint compares devices: a loop mount is always a device of its own.
func isMountPoint(path string) (bool, error) {
	var here, above syscall.Stat_t
	if err := syscall.Stat(path, &here); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := syscall.Stat(filepath.Dir(path), &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
