package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// clientSocketMode lets every user of the machine talk to flared, as the TCP port does.
const clientSocketMode = 0o777

// clientSocket opens the Unix socket for clients; nil if there is to be none.
func (s *Server) clientSocket() (net.Listener, error) {
	path := s.live.Load().ServerSocket
	if path == "" {
		return nil, nil
	}
	return listenUnix("server-socket", path, clientSocketMode)
}

// listenUnix opens the Unix socket that an option names. Closing it removes the file.
//
// One process only uses a data directory, so a socket that is there was left by a
// former one. Anything but a socket is not ours to remove.
func listenUnix(option, path string, mode fs.FileMode) (net.Listener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("node: %s: %w", option, err)
	case info.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("node: %s %s: a file of another kind is there; remove it or give another --%s", option, path, option)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("node: %s: %w", option, err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("node: %s: %w", option, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("node: %s: %w", option, err)
	}
	return l, nil
}
