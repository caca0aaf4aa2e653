import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss, denoising_error
from helpers import tiny_scheduler


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_targets_recover_the_image(prediction_type):
    """Whatever the prediction type, the scheduler turns a perfect prediction back into the clean image."""
    scheduler = tiny_scheduler(prediction_type)
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    draws = DenoisingLoss(scheduler, "uniform", null_label=3).draw(images, torch.arange(6) % 3, 4)
    assert draws.noisy.shape == draws.target.shape == (6, 4, 1, 8, 8)
    assert draws.timesteps.shape == draws.labels.shape == (6, 4)
    scheduler.set_timesteps(1000)
    for record in range(6):
        for k in range(4):
            timestep = draws.timesteps[record, k]
            if timestep > 950:
                continue  # almost all noise, so that dividing by the remaining signal is inaccurate
            output = scheduler.step(draws.target[record, k], timestep, draws.noisy[record, k])
            assert torch.allclose(output.pred_original_sample, images[record], atol=2e-3)


def test_log_normal_draws_are_log_normal_in_the_noise_level():
    scheduler = tiny_scheduler()
    loss = DenoisingLoss(scheduler, "log_normal", noise_level_mean=-0.6, noise_level_std=1.2)
    timesteps = loss.draw(torch.zeros(200, 1, 8, 8), torch.zeros(200, dtype=torch.int64), 100).timesteps.flatten()
    alphas = scheduler.alphas_cumprod[timesteps].double()
    log_sigma = ((1 - alphas) / alphas).log() / 2
    assert log_sigma.mean() == pytest.approx(-0.6, abs=0.06)
    assert log_sigma.std() == pytest.approx(1.2, abs=0.06)


def test_uniform_draws_are_uniform_and_the_two_differ():
    zeros = torch.zeros(200, 1, 8, 8), torch.zeros(200, dtype=torch.int64)
    timesteps = DenoisingLoss(tiny_scheduler(), "uniform").draw(*zeros, 100).timesteps.double()
    assert timesteps.mean() == pytest.approx(499.5, abs=15)
    assert timesteps.std() == pytest.approx(288.7, abs=10)


def test_labels_are_dropped_at_the_given_rate_and_per_draw():
    loss = DenoisingLoss(tiny_scheduler(), label_dropout=0.25, null_label=7)
    labels = loss.draw(torch.zeros(100, 1, 8, 8), torch.full((100,), 2), 50).labels
    assert set(labels.unique().tolist()) == {2, 7}
    assert (labels == 7).double().mean() == pytest.approx(0.25, abs=0.04)
    assert ((labels == 7).any(dim=1) & (labels == 2).any(dim=1)).double().mean() > 0.9  # not per record


def test_every_draw_has_noise_of_its_own():
    draws = DenoisingLoss(tiny_scheduler("epsilon")).draw(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), 3)
    noises = draws.target.view(6, 64)
    assert torch.corrcoef(noises).fill_diagonal_(0).abs().max() < 0.6


def test_flips_mirror_half_of_the_draws():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 0] = 1
    draws = DenoisingLoss(tiny_scheduler("sample"), random_flip=True).draw(
        images, torch.zeros(1, dtype=torch.int64), 400
    )
    mirrored = draws.target[0, :, 0, 0, 7] == 1
    assert mirrored.double().mean() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(draws.target[0, mirrored], images.flip(-1).expand(int(mirrored.sum()), -1, -1, -1))


def test_unconditional_draws_have_no_labels_and_empty_batches_work():
    for scheduler in (tiny_scheduler(), EDMEulerScheduler()):
        draws = DenoisingLoss(scheduler, null_label=None).draw(
            torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), 4
        )
        assert draws.labels is None
        assert draws.noisy.shape == (0, 4, 1, 8, 8)


def test_error_is_the_mean_square():
    loss = DenoisingLoss(tiny_scheduler("sample"), null_label=1)
    draws = loss.draw(torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64), 2).flatten()

    class Off:
        def __init__(self, *inputs):
            self.sample = draws.target + 0.5

    assert denoising_error(Off, draws) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep_sampling": "cosine"}, "timestep_sampling"),
        ({"noise_level_std": 0.0}, "noise_level_std"),
        ({"label_dropout": 1.0}, "label_dropout"),
    ],
)
def test_refuses_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        DenoisingLoss(tiny_scheduler(), **options)


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler])
def test_a_scheduler_without_a_loss_is_refused(kind):
    with pytest.raises(InputError, match=f"no loss for {kind.__name__}: train with a DDPMScheduler or"):
        DenoisingLoss(kind())


@pytest.mark.parametrize(("prediction_type", "sign"), [("epsilon", 1), ("v_prediction", -1)])
def test_edm_is_the_loss_of_karras(prediction_type, sign):
    """lambda(sigma) |D(y + n; sigma) - y|^2 by the formulas of the paper (arXiv:2206.00364, table 1), in float64."""
    sigma_data = 0.6
    scheduler = EDMEulerScheduler(sigma_data=sigma_data, prediction_type=prediction_type)
    images = torch.rand(50, 1, 8, 8, dtype=torch.float64) * 2 - 1
    draws = DenoisingLoss(scheduler, null_label=3).draw(images, torch.arange(50) % 3, 4)
    assert draws.noisy.shape == draws.target.shape == (50, 4, 1, 8, 8)
    assert draws.timesteps.shape == draws.labels.shape == (50, 4)

    sigma = (4 * draws.timesteps.double()).exp()[..., None, None, None]  # of c_noise = ln(sigma) / 4
    c_in, c_skip = (sigma_data**2 + sigma**2) ** -0.5, sigma_data**2 / (sigma_data**2 + sigma**2)
    c_out = sigma * sigma_data / (sigma_data**2 + sigma**2) ** 0.5
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    noisy = draws.noisy / c_in
    network = sign * torch.sin(3 * draws.noisy)  # any network
    denoised = c_skip * noisy + c_out * sign * network
    expected = (weight * (denoised - images[:, None]) ** 2).mean()
    assert (network - draws.target).square().mean() == pytest.approx(expected.item(), rel=1e-4)

    noise = (noisy - images[:, None]) / sigma
    # Within six standard errors of 12,800 numbers.
    assert noise.mean() == pytest.approx(0, abs=6 / 12_800**0.5)
    assert noise.std() == pytest.approx(1, abs=6 / (2 * 12_800) ** 0.5)


def test_edm_noise_levels_are_log_normal_and_targets_have_unit_variance():
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    loss = DenoisingLoss(scheduler, noise_level_mean=-1.2, noise_level_std=1.2, null_label=3)
    draws = loss.draw(0.5 * torch.randn(500, 1, 8, 8), torch.zeros(500, dtype=torch.int64), 20)
    log_sigma = 4 * draws.timesteps
    # Within six standard errors of 10,000 numbers.
    assert log_sigma.mean() == pytest.approx(-1.2, abs=1.2 * 6 / 10_000**0.5)
    assert log_sigma.std() == pytest.approx(1.2, abs=1.2 * 6 / (2 * 10_000) ** 0.5)
    for quarter in torch.argsort(log_sigma.flatten()).chunk(4):
        assert draws.flatten().target[quarter].std() == pytest.approx(1, abs=0.03)
        assert draws.flatten().noisy[quarter].std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (EDMEulerScheduler(), {"timestep_sampling": "uniform"}, "EDM has no timesteps"),
        (EDMEulerScheduler(prediction_type="sample"), {}, 'EDM has no prediction type "sample"'),
    ],
)
def test_edm_refuses_what_is_of_ddpm(scheduler, options, message):
    with pytest.raises(InputError, match=message):
        DenoisingLoss(scheduler, **options)


def test_refuses_prediction_types_it_has_no_target_for():
    scheduler = tiny_scheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(InputError, match='prediction type "flow"'):
        DenoisingLoss(scheduler)
