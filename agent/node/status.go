package node

import "sync"

// A statusKeeper holds why the node does not serve; "" while it does.
type statusKeeper struct {
	changed *broadcast

	mu     sync.Mutex
	reason string
}

func (k *statusKeeper) set(reason string) {
	k.mu.Lock()
	same := k.reason == reason
	k.reason = reason
	k.mu.Unlock()
	if !same {
		k.changed.fire()
	}
}

func (k *statusKeeper) get() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.reason
}
