package engineapi

import (
	"net/http"

	"github.com/onggi/onggi/internal/errdefs"
)

// What an engine outside a swarm answers.

func (s *Server) noSwarm(*call) error {
	return errdefs.WithHint(errdefs.Newf(errdefs.Unavailable, "", "", `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`),
		"this version of Onggi has no swarm mode yet")
}

func (s *Server) noSwarmYet(*call) error {
	return errdefs.Newf(errdefs.Unsupported, "", "", "swarm mode is not supported by this version of Onggi")
}

func (s *Server) notInSwarm(*call) error {
	return errdefs.Newf(errdefs.Unavailable, "", "", "This node is not part of a swarm")
}

func (s *Server) pluginList(c *call) error { return c.json(http.StatusOK, []any{}) }

func (s *Server) noPlugins(*call) error {
	return errdefs.Newf(errdefs.Unsupported, "", "", "managed plugins are not supported by this version of Onggi")
}

func (s *Server) noSuchPlugin(c *call) error {
	return errdefs.Newf(errdefs.NotFound, "", "", "plugin %q not found", c.path["name"])
}
